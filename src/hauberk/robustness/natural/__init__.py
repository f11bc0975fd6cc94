"""Natural corruptions of images, by family. A new corruption is one function, and for a new family one line here."""

from hauberk.robustness.natural.blur import defocus_blur as defocus_blur
from hauberk.robustness.natural.blur import gaussian_blur as gaussian_blur
from hauberk.robustness.natural.blur import motion_blur as motion_blur
from hauberk.robustness.natural.contract import SMALL_SIDE as SMALL_SIDE
from hauberk.robustness.natural.contract import Corruption as Corruption
from hauberk.robustness.natural.geometry import rotate as rotate
from hauberk.robustness.natural.geometry import translate as translate
from hauberk.robustness.natural.light import brightness as brightness
from hauberk.robustness.natural.light import contrast as contrast
from hauberk.robustness.natural.noise import gaussian_noise as gaussian_noise
from hauberk.robustness.natural.noise import salt_and_pepper as salt_and_pepper
from hauberk.robustness.natural.noise import shot_noise as shot_noise
from hauberk.robustness.natural.noise import uniform_noise as uniform_noise
from hauberk.robustness.natural.storage import jpeg as jpeg
from hauberk.robustness.natural.storage import pixelate as pixelate
