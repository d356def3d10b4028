"""llama.cpp's own server, as xllamacpp has it in a wheel, under the options of `llama-server` that the tests use.

Run by an interpreter that has xllamacpp: `make interop-llama` installs one.
"""

import argparse
import signal

import xllamacpp as llama

options = argparse.ArgumentParser()
options.add_argument("--model", required=True)
options.add_argument("--port", type=int, required=True)
options.add_argument("--lora", type=lambda names: names.split(","), default=[])
options.add_argument("--parallel", type=int, default=4)
options.add_argument("--ctx-size", type=int, default=0)
options.add_argument("--threads", type=int, default=1)
options.add_argument("--cache-type", choices=["f32", "f16"], default="f16")
options.add_argument("--lora-init-without-apply", action="store_true")
asked = options.parse_args()
params = llama.CommonParams()
params.model.path, params.hostnames, params.port = asked.model, ["127.0.0.1"], asked.port
params.lora_adapters = [llama.CommonAdapterLoraInfo(name, 0.0) for name in asked.lora]
params.lora_init_without_apply = asked.lora_init_without_apply
params.n_parallel, params.n_ctx = asked.parallel, asked.ctx_size
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = asked.threads
params.warmup = params.fit_params = False
if asked.cache_type == "f32":
    params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
server = llama.Server(params)
print(server.listening_address, flush=True)
signal.sigwait({signal.SIGINT, signal.SIGTERM})
