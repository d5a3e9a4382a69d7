"""Package metadata. `pyproject.toml` names the build back end and configures the tools."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def read_version() -> str:
    """The version as `vatt/__init__.py` states it, read without importing the package."""
    source = (HERE / "vatt" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', source, flags=re.MULTILINE)
    if match is None:
        raise RuntimeError('vatt/__init__.py has no line of the form: __version__ = "0.1.0"')
    return match.group(1)


setup(
    name="vatt",
    version=read_version(),
    description="Train, evaluate and use video-audio-text transformers (VATT)",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    author="The maintainers of vatt",
    project_urls={"Paper": "https://arxiv.org/abs/2104.11178"},
    keywords=["video", "audio", "text", "transformer", "self-supervised", "retrieval", "pytorch"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Multimedia :: Sound/Audio :: Analysis",
        "Topic :: Multimedia :: Video",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["vatt", "vatt.*", "datamodules"]),
    # Named, it makes an editable install a path in a .pth file. The default import hook comes after
    # the current folder, where a clone called vatt is taken for a package without contents.
    package_dir={"": "."},
    # vatt/config/configs is a link to configs/: an installed vatt finds its configs by name.
    package_data={
        "": ["*.pyi"],
        "vatt": ["py.typed"],
        "vatt.config": ["configs/*.yaml"],
        "vatt.models": ["card.md"],
        "vatt.pages": ["*.html", "*.css", "*.js"],
        "datamodules": ["py.typed"],
    },
    zip_safe=False,
    # An upper bound stands where a version may break us: what we use there is not promised to stay.
    install_requires=[
        "torch>=2.11,<3",  # Adam's _init_group, _step_supports_amp_scaling, torch._foreach_*
        "torchaudio>=2.11,<3",  # torchaudio._extension
        "av>=18,<20",  # each major version renames arguments and types
        # fit_loop._data_fetcher and _should_accumulate, WeightAveraging._swap_models,
        # WandbLogger._experiment and _wandb_init, LightningCLI._subcommand_parsers
        "lightning>=2.6,<2.7",
        "einops>=0.8",
        "wandb>=0.30",
        "numpy>=2.0",
        "argcomplete>=3.5",  # completion in the shell
        "jsonargparse[signatures]>=4.50,<5",  # the words of its errors, which we shorten
        "lazy_loader>=0.4",
        "huggingface_hub>=1.0",
        "Jinja2>=3.1",  # pages and model cards
        "pysubs2>=1.8",  # subtitles beside media
        "safetensors>=0.5",
        "tabulate>=0.9",
        "tokenizers>=0.21",
        "tqdm>=4.66",
        "PyYAML>=6",
    ],
    extras_require={
        "convert": ["google-crc32c>=1.5"],  # checksums of TensorFlow checkpoints
        "eval": ["scikit-learn>=1.5"],  # logistic regression on features
        "export": ["onnx>=1.16", "onnxscript>=0.5", "onnxruntime>=1.18"],
        "gcs": ["gcsfs>=2024.6"],  # gs:// addresses
        # CLIP, SigLIP, CLAP and sentence-transformers' models; Pillow for the pictures of the first
        # two. Without torchvision, of which each build fits one build of torch only.
        # sentencepiece and protobuf read SigLIP's tokenizer.
        "hf": [
            "transformers>=5.17,<6",
            "sentence-transformers>=6.0,<7",
            "pillow>=10.0.1",
            "sentencepiece>=0.2",
            "protobuf>=5",
        ],
        # inject_adapter_in_model, tuners.tuners_utils.BaseTunerLayer
        "lora": ["vatt[hf]", "peft>=0.21,<1"],
        "mteb": ["vatt[hf]", "mteb>=2.26"],  # its tasks of sound and video; brings pandas, polars
        "parquet": ["pyarrow>=16"],  # captions and features in parquet files
        # PE-AV: its picture tower is one of timm, its frames are resized by torchvision.
        # timm 1.0.31 has a buffer `rope.bands`, which transformers 5.23 takes for a weight.
        "pe-av": ["vatt[hf]", "timm>=1.0.23,<1.0.31", "torchvision>=0.26,<1"],
        "remote": ["fsspec>=2024.6", "aiohttp>=3.9"],  # shards on web servers
        "s3": ["s3fs>=2024.6"],  # s3:// addresses
        "search": ["faiss-cpu>=1.9", "pyarrow>=16"],  # approximate; features in parquet files
        # TensorBoard's files, and Pillow, with which wandb sends pictures
        "tracking": ["tensorboard>=2.16", "pillow>=10"],
        "all": [
            "vatt[convert,eval,export,gcs,hf,lora,mteb,parquet,pe-av,remote,s3,search,tracking]"
        ],
        "dev": [
            "vatt[convert,eval,export,parquet,remote,search,tracking]",  # what the tests use
            "filelock",
            "hypothesis>=6.100",
            "import-linter>=2.3",
            "mypy>=2.0",
            "pandas>=2.2",
            "pytest>=8.0",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "ruff>=0.15,<0.18",  # each minor version has further rules
            "setuptools>=77",
        ],
    },
    entry_points={"console_scripts": ["vatt=vatt.cli:main"]},
)
