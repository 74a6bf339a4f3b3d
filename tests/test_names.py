"""The public names."""

import importlib

import pytest

import smoothout_jax


def test_names_that_never_were_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        smoothout_jax.nothing  # noqa: B018


@pytest.mark.parametrize("module", ["", ".sharpness", ".landscape", ".plots"])
def test_every_public_name_is_there(module):
    module = importlib.import_module(f"smoothout_jax{module}")
    for name in module.__all__:
        assert hasattr(module, name)


@pytest.mark.parametrize("module", ["sharpness", "landscape", "plots"])
def test_modules_of_measures_and_pictures_need_no_import_of_their_own(module):
    assert getattr(smoothout_jax, module) is importlib.import_module(
        f"smoothout_jax.{module}"
    )
