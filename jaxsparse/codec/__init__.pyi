from .stream import CodecSettings as CodecSettings
from .stream import choose_network as choose_network
from .stream import compress as compress
from .stream import decompress as decompress
