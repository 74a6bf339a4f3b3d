"""The public names."""

import importlib
import subprocess
import sys

import pytest

import smoothout_jax

MODULES = "sharpness", "landscape", "plots", "rivals"


def test_names_that_never_were_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        smoothout_jax.nothing  # noqa: B018


@pytest.mark.parametrize("module", ["", *(f".{module}" for module in MODULES)])
def test_every_public_name_is_there(module):
    module = importlib.import_module(f"smoothout_jax{module}")
    for name in module.__all__:
        assert hasattr(module, name)


@pytest.mark.parametrize("module", MODULES)
def test_modules_that_do_not_train_need_no_import_of_their_own(module):
    assert getattr(smoothout_jax, module) is importlib.import_module(
        f"smoothout_jax.{module}"
    )


def test_modules_that_do_not_train_are_not_imported_before_they_are_used():
    code = (
        "import sys, smoothout_jax;"
        f"assert not sys.modules.keys() & {{f'smoothout_jax.{{m}}' for m in {MODULES}}}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
