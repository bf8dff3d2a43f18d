"""From an image embedding to one mask per class: SAM's mask decoder with a learned mask token per class and no prompt.

A class token starts as SAM's single-mask token and its hyper-network as that token's, so that with one class the first
prediction is what SAM answers when it is given no prompt at all.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn
from transformers import SamModel
from transformers.models.sam.modeling_sam import SamMaskDecoder

from pfedsam.model import image_skip

_HIDDEN = 16


class OutputLayers(nn.Module):
    """The decoder's trainable end: two up-scaling steps and, for each class, the MLP that turns its token into weights.

    With a generator also two convolutions over the image itself (`pfedsam.model.image_skip`), whose output is added to the up-scaled
    features; the second starts at zero, so that masks start as SAM's.
    """

    def __init__(self, decoder: SamMaskDecoder, classes: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.upscale_conv1 = deepcopy(decoder.upscale_conv1)
        self.upscale_layer_norm = deepcopy(decoder.upscale_layer_norm)
        self.upscale_conv2 = deepcopy(decoder.upscale_conv2)
        self.mlps = nn.ModuleList(deepcopy(decoder.output_hypernetworks_mlps[0]) for _ in range(classes))
        self.activation = nn.GELU()
        self.image_skip = (
            None if generator is None else _image_skip_layers(decoder.upscale_conv2.out_channels, generator)
        )

    def forward(self, tokens: Tensor, image: Tensor, seen: Tensor | None = None) -> Tensor:
        """Logits `[B, C, 4h, 4w]`.

        Args:
            tokens: of the classes, `[B, C, d]`, after the transformer.
            image: `[B, d, h, w]`, after the transformer.
            seen: the image itself, `[B, image_skip.CHANNELS, 4h, 4w]`, where there are layers for it.
        """
        image = self.activation(self.upscale_layer_norm(self.upscale_conv1(image)))
        image = self.activation(self.upscale_conv2(image))
        if self.image_skip is not None:
            image = image + self.image_skip(seen)
        weights = torch.stack([mlp(tokens[:, i]) for i, mlp in enumerate(self.mlps)], dim=1)
        return torch.einsum("bcd,bdhw->bchw", weights, image)


def _image_skip_layers(channels: int, generator: torch.Generator) -> nn.Sequential:
    first = nn.Conv2d(image_skip.CHANNELS, _HIDDEN, 3, padding=1)
    last = nn.Conv2d(_HIDDEN, channels, 3, padding=1)
    with torch.no_grad():
        first.weight.normal_(0, (9 * image_skip.CHANNELS) ** -0.5, generator=generator)
        for parameter in (first.bias, last.weight, last.bias):
            nn.init.zeros_(parameter)  # type: ignore[arg-type]
    return nn.Sequential(first, nn.GELU(), last)


def class_tokens(decoder: SamMaskDecoder, classes: int) -> nn.Parameter:
    """`[C, d]`: a learned mask token per class, each a copy of SAM's single-mask token."""
    return nn.Parameter(decoder.mask_tokens.weight[:1].detach().repeat(classes, 1))


def decode(
    model: SamModel, embedding: Tensor, tokens: Tensor, layers: OutputLayers, seen: Tensor | None = None
) -> Tensor:
    """Prompt-free masks, one per class.

    Args:
        model: SAM, whose decoder's transformer is used (with LoRA where there is some).
        embedding: of the images, `[B, d, h, w]`.
        tokens: of the classes, `[C, d]`; they take the place of the single-mask token.
        layers: what turns the transformer's output into masks.
        seen: the images themselves, `[B, image_skip.CHANNELS, 4h, 4w]`, where `layers` look at them.

    Returns:
        Logits `[B, C, 4h, 4w]`.
    """
    decoder = model.mask_decoder
    batch, channels, height, width = embedding.shape
    others = decoder.mask_tokens.weight[1:]
    queries = torch.cat([decoder.iou_token.weight, tokens, others]).expand(batch, 1, -1, -1)
    no_mask = model.prompt_encoder.no_mask_embed.weight.view(1, channels, 1, 1)
    position = model.get_image_wide_positional_embeddings().expand(batch, -1, -1, -1)
    mixed, image = decoder.transformer(
        point_embeddings=queries,
        image_embeddings=embedding + no_mask,
        image_positional_embeddings=position,
        attention_similarity=None,
    )
    image = image.transpose(2, 3).reshape(batch, channels, height, width)
    return layers(mixed[:, 0, 1 : 1 + len(tokens)], image, seen)  # type: ignore[no-any-return]
