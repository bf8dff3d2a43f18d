"""Checks that the parts of a network fit together, by the shapes of a forward pass; no value is computed."""

from torch import Size, Tensor, nn, zeros

from pfedsam.model.backbones.base import Backbone


def mask_shape(backbone: Backbone) -> Size:
    """The shape `[1, H, W]` of the mask of one class, from an image through all kinds of layers that the personal model uses.

    Of the encoder's blocks, which all have the same sizes, one with windows and one with global attention are used.

    Args:
        backbone: a backbone whose network is on the device `meta`, so that shapes are computed alone.

    Raises:
        RuntimeError: the parts do not fit together; other errors of Python are possible, too.
    """
    device = next(backbone.network.parameters()).device
    tokens = backbone.embed(zeros(1, 3, backbone.image_size, backbone.image_size, device=device))
    for block in {block.window: block for block in backbone.blocks}.values():
        tokens = block(tokens)
    embedding, features = backbone.finish(tokens, [tokens] * len(backbone.stages))
    outputs, image = backbone.decode(embedding, backbone.class_token())
    upscaled = _upscaled(backbone, image, features)
    weights: Tensor = backbone.mask_layers().hypernetwork(outputs[:, 0])
    return (weights[:, None] @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])[:, 0].shape


def _upscaled(backbone: Backbone, image: Tensor, features: tuple[Tensor, ...]) -> Tensor:
    layers = nn.Module()
    for name, layer in backbone.mask_layers().layers.items():
        layers.add_module(name, layer)
    return backbone.upscale(layers, image, features)
