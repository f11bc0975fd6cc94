"""The rules: importing this package registers them."""

from hauberk.privacy.dp.engine.ops import attention as attention
from hauberk.privacy.dp.engine.ops import convolution as convolution
from hauberk.privacy.dp.engine.ops import embedding as embedding
from hauberk.privacy.dp.engine.ops import linear as linear
from hauberk.privacy.dp.engine.ops import norms as norms
from hauberk.privacy.dp.engine.ops import recurrent as recurrent
