from .stream import CodecSettings as CodecSettings
from .stream import choose_decoder as choose_decoder
from .stream import compress as compress
from .stream import decompress as decompress
