"""Import paths of weight-bearing classes stand in saved models (anchors.md, F3)."""

import importlib
import pkgutil

import diffusers.pipelines
import pytest
from diffusers.models.modeling_utils import ModelMixin

import synthgen.models


def model_classes():
    for info in pkgutil.iter_modules(synthgen.models.__path__, "synthgen.models."):
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            if (
                isinstance(value, type)
                and issubclass(value, ModelMixin)
                and value.__module__ == info.name
            ):
                yield value


@pytest.mark.parametrize("kind", list(model_classes()), ids=lambda kind: kind.__name__)
def test_diffusers_can_load_a_component(kind):
    package, module_name = kind.__module__.split(".")[-2:]
    module = importlib.import_module(kind.__module__)
    assert hasattr(module, "ModelMixin"), "diffusers looks for the name in the component's module"
    # diffusers takes a parent folder of such a name for one of its own pipelines.
    assert not hasattr(diffusers.pipelines, package)
    assert not hasattr(diffusers.pipelines, module_name)
