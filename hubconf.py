"""Entry points for ``torch.hub.load``."""

dependencies = ["torch", "networkx", "numpy", "PIL", "rich", "safetensors", "typer"]


def bcos_network(source, *, device="cpu", **options):
    """Return a converted network: ``user/name`` of the Hugging Face hub, or a folder or file.

    Takes the arguments of :func:`bcos_fx.from_pretrained`. Nothing in the file is run.
    """
    from bcos_fx.hub import from_pretrained

    return from_pretrained(source, device=device, **options)
