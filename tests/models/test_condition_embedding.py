import torch

from synthgen.models.condition import ConditionEmbedding, num_coordinate_planes

LATENT = torch.zeros(2, 3, 4, 5)
VALUES = torch.tensor([[0.1, 0.9], [0.4, 0.2]])


def test_class_embedding_uses_the_null_token_where_dropped():
    embed = ConditionEmbedding(2, 8, "class", 3)
    with torch.no_grad():
        embed.null.fill_(7.0)
    out = embed(LATENT, VALUES, torch.tensor([1.0, 0.0]))
    assert torch.equal(out.sample, LATENT)
    assert torch.equal(out.class_labels[1], torch.full((8,), 7.0))
    assert not torch.equal(out.class_labels[0], out.class_labels[1])


def test_planes_hold_the_values_or_minus_one():
    out = ConditionEmbedding(2, 8, "concat", 0)(LATENT, VALUES, torch.tensor([1.0, 0.0]))
    assert out.class_labels is None
    assert out.sample.shape == (2, 5, 4, 5)
    torch.testing.assert_close(out.sample[0, 3:, 2, 2], VALUES[0])
    assert torch.equal(out.sample[1, 3:], -torch.ones(2, 4, 5))


def test_no_condition_changes_nothing():
    out = ConditionEmbedding(2, 8, "none", 0)(LATENT, VALUES, torch.ones(2))
    assert torch.equal(out.sample, LATENT)
    assert out.class_labels is None


def test_every_parameter_gets_a_gradient():
    embed = ConditionEmbedding(2, 8, "class", 3)
    embed(LATENT, VALUES, torch.tensor([1.0, 0.0])).class_labels.square().sum().backward()
    embed.null.data.fill_(1.0)
    embed(LATENT, VALUES, torch.tensor([1.0, 0.0])).class_labels.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in embed.parameters())


def test_every_mode_survives_saving(tmp_path):
    for mode in ("class", "concat", "none"):
        embed = ConditionEmbedding(2, 8, mode, 3)
        embed.save_pretrained(tmp_path / mode)
        loaded = ConditionEmbedding.from_pretrained(tmp_path / mode)
        one, two = embed(LATENT, VALUES, torch.ones(2)), loaded(LATENT, VALUES, torch.ones(2))
        assert torch.equal(one.sample, two.sample)
        if mode == "class":
            assert torch.equal(one.class_labels, two.class_labels)


def test_coordinate_planes_show_where_a_pixel_is():
    embed = ConditionEmbedding(2, 8, "none", 0, coordinates=2)
    planes = embed(LATENT, VALUES, torch.ones(2)).sample[:, 3:]
    assert planes.shape[1] == num_coordinate_planes(2) == 10
    torch.testing.assert_close(planes[0, 0, :, 0], torch.linspace(-1, 1, 4))
    torch.testing.assert_close(planes[1, 1, 0], torch.linspace(-1, 1, 5))
    assert num_coordinate_planes(0) == 0


def test_the_template_of_the_position_is_shown_and_their_mean_where_dropped():
    embed = ConditionEmbedding(2, 8, "class", 1, template_shape=(3, 3, 4, 5))
    embed.template.copy_(torch.tensor([0.0, 10.0, 50.0]).view(3, 1, 1, 1).expand(3, 3, 4, 5))
    values = torch.tensor([[0.0, 0.25], [0.0, 0.75], [0.0, 1.0], [0.0, 0.3]])
    keep = torch.tensor([1.0, 1.0, 1.0, 0.0])
    shown = embed(torch.zeros(4, 3, 4, 5), values, keep).sample[:, 3:]
    assert shown.shape == (4, 3, 4, 5)
    torch.testing.assert_close(shown[:, 0, 0, 0], torch.tensor([5.0, 30.0, 50.0, 20.0]))
    assert (shown.flatten(1).std(dim=1) < 1e-5).all()


def test_templates_work_in_bfloat16():
    embed = ConditionEmbedding(2, 8, "class", 1, template_shape=(3, 3, 4, 5)).to(torch.bfloat16)
    latent = torch.zeros(1, 3, 4, 5, dtype=torch.bfloat16)
    planes = embed(latent, torch.tensor([[0.0, 0.3]]), torch.ones(1)).sample
    assert planes.dtype == torch.bfloat16
