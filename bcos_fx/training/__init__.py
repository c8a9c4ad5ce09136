"""From a converted network to one that explains well: schedules of B and of biases, losses, a trainer."""
