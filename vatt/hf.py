"""Our models in transformers.

`import vatt.hf` registers them: `AutoConfig`, `AutoModel` and `AutoProcessor` then load model
folders of vatt, from disk and from the Hugging Face Hub.

Example:
    >>> import vatt.hf
    >>> from transformers import AutoModel, AutoProcessor
    >>> model = AutoModel.from_pretrained("runs/demo/model")
    >>> processor = AutoProcessor.from_pretrained("runs/demo/model")
    >>> inputs = processor(text=["a dog barks"], audio=[waveform], sampling_rate=16_000)
    >>> model(**inputs).text_vt, model(**inputs).audio_vt  # float32 [1, d_vt] each
"""

from importlib import import_module

from vatt.encoders.transformers_loading import prepare_imports

prepare_imports()
try:
    import_module("transformers")
except ImportError as error:
    raise ImportError('vatt.hf needs transformers: pip install "vatt[hf]"') from error

# only now, when transformers has loaded
from transformers import AutoConfig, AutoModel, AutoProcessor  # noqa: E402

from vatt.models.hf_config import MODEL_TYPE, VattConfig, read_config_files_of_vatt  # noqa: E402
from vatt.models.hf_model import VattModel, VattOutput  # noqa: E402
from vatt.models.hf_processor import VattProcessor  # noqa: E402

__all__ = ["VattConfig", "VattModel", "VattOutput", "VattProcessor"]

read_config_files_of_vatt()
AutoConfig.register(MODEL_TYPE, VattConfig, exist_ok=True)
AutoModel.register(VattConfig, VattModel, exist_ok=True)
AutoProcessor.register(VattConfig, VattProcessor, exist_ok=True)
