from .mdct_stream import MDCTSettings as MDCTSettings
from .stft_stream import STFTSettings as STFTSettings
from .stft_stream import choose_decoder as choose_decoder
from .stream import GRIDS as GRIDS
from .stream import compress as compress
from .stream import decompress as decompress
from .stream import describe as describe
from .weights import load_codec as load_codec
