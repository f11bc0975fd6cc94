"""How far two images are from each other as an eye sees them: in `core`, since privacy measures reconstructions with it too."""

from hauberk.core.image_quality import psnr as psnr
from hauberk.core.image_quality import ssim as ssim
