"""The kernel that SGLang's rotary embedding asks for and, without a GPU, replaces by its own PyTorch code."""


def rotary_embedding(*args: object) -> None:
    """Nothing may call it."""
    raise AssertionError("the tests rotate with SGLang's forward_native")
