"""Pictures for reports: small PNGs from image tensors."""

from __future__ import annotations

import base64
import io

import torch
from torch import Tensor

from hauberk.core.finding import Picture
from hauberk.core.threat import Bounds


def picture(image: Tensor, caption: str, *, bounds: Bounds = (0.0, 1.0), width: int = 64) -> Picture:
    """Return one image, shape (channels, height, width), as a PNG at most `width` pixels wide, enlarged by whole pixels.

    One channel is shown in gray, three in colour; of any other number the first is shown.
    """
    from PIL import Image

    low, high = (torch.as_tensor(end, dtype=torch.float64) for end in bounds)
    scaled = ((image.detach().cpu().double() - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    pixels = scaled.mul(255).round().byte()
    array = pixels.permute(1, 2, 0).numpy() if len(pixels) == 3 else pixels[0].numpy()
    drawn = Image.fromarray(array)
    if drawn.width > width:
        drawn = drawn.resize((width, max(1, round(drawn.height * width / drawn.width))))
    elif drawn.width * 2 <= width:
        scale = width // drawn.width
        drawn = drawn.resize((drawn.width * scale, drawn.height * scale), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    drawn.save(buffer, "PNG", optimize=True)
    return Picture(base64.b64encode(buffer.getvalue()).decode(), caption)
