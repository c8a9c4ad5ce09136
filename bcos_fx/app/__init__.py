"""A local page that explains a network's decisions about photographs."""
