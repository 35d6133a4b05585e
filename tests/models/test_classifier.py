import pytest
import torch
from monai.networks.nets import DenseNet121

from synthgen.core.errors import RequestError
from synthgen.losses.style import modality_dataset_bce
from synthgen.models.classifier import ModalityDatasetClassifier


def small(**settings):
    return ModalityDatasetClassifier(
        num_modalities=3, num_datasets=2, arch="small", width=8, **settings
    )


def images(batch=2, size=(64, 96)):
    return torch.rand(batch, 1, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_densenet_has_the_size_of_the_reference():
    with torch.device("meta"):
        model = ModalityDatasetClassifier(num_modalities=3, num_datasets=3)
    # 6.95 M in the reference: the DenseNet-121 trunk and two linear heads.
    assert sum(parameter.numel() for parameter in model.parameters()) == 6_953_734


def test_densenet_equals_monai_with_the_same_weights():
    model = ModalityDatasetClassifier(num_modalities=3, num_datasets=2).eval()
    reference = DenseNet121(spatial_dims=2, in_channels=1, out_channels=3).eval()
    trunk = [value for stage in model.stages for value in stage.state_dict().values()]
    ours = [*trunk, *model.modality_head.state_dict().values()]
    theirs = reference.state_dict()
    reference.load_state_dict(dict(zip(theirs, ours, strict=True)))
    torch.testing.assert_close(model(images()).modality, reference(images()))


def test_shapes_of_logits_and_features():
    model = small().eval()
    logits = model(images())
    assert logits.modality.shape == (2, 3)
    assert logits.dataset.shape == (2, 2)
    assert [tuple(f.shape[1:]) for f in model.features(images())] == [
        (8, 32, 48),
        (16, 16, 24),
        (32, 8, 12),
        (32, 4, 6),
    ]


def test_densenet_features_get_coarser():
    with torch.device("meta"):
        model = ModalityDatasetClassifier(num_modalities=3, num_datasets=3).eval()
        features = model.features(torch.empty(1, 1, 192, 256))
    assert [tuple(f.shape[1:]) for f in features] == [
        (64, 48, 64),
        (256, 48, 64),
        (512, 24, 32),
        (1024, 12, 16),
        (1024, 6, 8),
    ]


def test_gradients_reach_every_parameter_and_the_image():
    model = small()
    image = images().requires_grad_()
    logits = model(image)
    (logits.modality.square().sum() + logits.dataset.square().sum()).backward()
    assert bool(image.grad.abs().sum() > 0)
    for name, parameter in model.named_parameters():
        assert bool(parameter.grad.abs().sum() > 0), name


def test_small_classifier_learns_contrast():
    model = small()
    image = images(batch=4) * 0.1 + torch.tensor([-0.6, -0.2, 0.2, 0.6]).view(4, 1, 1, 1)
    modality, dataset = torch.tensor([0, 1, 2, 0]), torch.tensor([0, 0, 1, 1])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        logits = model(image)
        loss = modality_dataset_bce(
            logits.modality, logits.dataset, modality, dataset, alpha_mod=1, alpha_dat=1
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_bf16_autocast_stays_close():
    model = small().eval()
    exact = model(images()).modality
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images()).modality
    assert (logits.float() - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("arch", ["small", "densenet121"])
def test_save_and_load_give_the_same_logits(tmp_path, arch):
    model = ModalityDatasetClassifier(num_modalities=3, num_datasets=2, arch=arch).eval()
    model.save_pretrained(tmp_path)
    loaded = ModalityDatasetClassifier.from_pretrained(tmp_path)
    assert not loaded.training
    # Loaded tensors may be aligned differently in memory: other kernels, other last bits.
    torch.testing.assert_close(
        loaded(images()).dataset, model(images()).dataset, rtol=1e-4, atol=1e-5
    )


def test_width_must_fit_the_groups():
    with pytest.raises(RequestError, match="multiple of 8, got 12"):
        ModalityDatasetClassifier(num_modalities=2, num_datasets=2, arch="small", width=12)
