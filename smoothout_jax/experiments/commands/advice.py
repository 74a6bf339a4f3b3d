"""What to change where training diverged, or did not learn."""

from smoothout_jax.experiments.methods.settings import MethodSettings
from smoothout_jax.experiments.methods.table import Method


def lower(method: Method, settings: MethodSettings) -> str:
    """Which settings to lower, and what they are: `lower the learning_rate (0.1)`."""
    name, value = method.strength_of(settings)
    other = "" if name == "learning_rate" else f" or {name} ({value:g})"
    return f"lower the learning_rate ({settings.peak_learning_rate:g}){other}"


def to_learn(
    method: Method, settings: MethodSettings, loss: float, guessing: float
) -> str:
    """Why it is that a method did not learn, and what to change."""
    return (
        f"its training loss, {loss:.4g} nats, is not below that of guessing,"
        f" {guessing:.4g}: train for longer, or {lower(method, settings)}"
    )
