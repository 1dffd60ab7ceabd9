"""Tiny models of the families that boresight is tested on, built as the demo's is.

Every family keeps what makes it special (window attention, DeepStack, tiles, sliding layers), and ties its head as its published
checkpoints do.
"""

from __future__ import annotations

from pathlib import Path

from transformers import AutoModelForImageTextToText

from boresight.demo.tiny import build
from boresight.demo.tiny.build import Family
from boresight.demo.tiny.qwen import qwen2_5_vl
from tests.tiny.blip import blip2, blip2_t5, florence2, instructblip
from tests.tiny.cohere import aya_vision, cohere2_vision, cohere_compass
from tests.tiny.deepseek import deepseek_vl, deepseek_vl_hybrid, janus
from tests.tiny.gemma import gemma3, gemma4, gemma4_bi, gemma4_kv, gemma4_unified, paligemma, paligemma2
from tests.tiny.glm import glm4v, glm4v_moe, glm46v, glm_ocr
from tests.tiny.hybrid import lfm2_vl, qwen3_5, qwen3_5_moe
from tests.tiny.idefics import idefics3, smolvlm
from tests.tiny.idefics2 import idefics2, idefics2_split
from tests.tiny.internvl import internvl, qianfan_ocr
from tests.tiny.llava import llava, llava_next, llava_next_video, llava_onevision, video_llava, vipllava
from tests.tiny.minicpm import minicpmv4_6, minicpmv4_7
from tests.tiny.mistral import lighton_ocr, mistral3, pixtral_llava
from tests.tiny.omni import qwen2_5_omni_thinker, qwen3_omni_moe_thinker
from tests.tiny.others import (
    aria,
    emu3,
    granite4_vision,
    inkling_mm_model,
    llama4,
    mllama,
    ovis2,
    step3p7,
)
from tests.tiny.patched import (
    cosmos3_edge,
    cosmos3_omni,
    ernie4_5_vl_moe,
    exaone4_5,
    glm5_next,
    hunyuan_vl,
    hyperclovax_vision_v2,
    kimi_k25,
    minimax_m3_vl,
    muse_glimmer,
    paddleocr_vl,
    qwen4_exp,
    video_llama_3,
)
from tests.tiny.phi import phi4_multimodal
from tests.tiny.qwen import qwen2_vl, qwen3_vl, qwen3_vl_moe
from tests.tiny.timm_towers import fast_vlm, gemma3n, perception_lm

FAMILIES: dict[str, Family] = {
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "qwen3_5": qwen3_5,
    "qwen3_5_moe": qwen3_5_moe,
    "lfm2_vl": lfm2_vl,
    "smolvlm": smolvlm,
    "idefics3": idefics3,
    "llava": llava,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "internvl": internvl,
    "gemma3": gemma3,
}
"""Every test of a family runs on these."""

ALL: dict[str, Family] = FAMILIES | {
    "aria": aria,
    "aya_vision": aya_vision,
    "blip2": blip2,
    "blip2_t5": blip2_t5,
    "cohere2_vision": cohere2_vision,
    "cohere_compass": cohere_compass,
    "cosmos3_edge": cosmos3_edge,
    "cosmos3_omni": cosmos3_omni,
    "deepseek_vl": deepseek_vl,
    "deepseek_vl_hybrid": deepseek_vl_hybrid,
    "emu3": emu3,
    "ernie4_5_vl_moe": ernie4_5_vl_moe,
    "exaone4_5": exaone4_5,
    "fast_vlm": fast_vlm,
    "florence2": florence2,
    "gemma3n": gemma3n,
    "gemma4": gemma4,
    "gemma4_bi": gemma4_bi,
    "gemma4_kv": gemma4_kv,
    "gemma4_unified": gemma4_unified,
    "glm46v": glm46v,
    "glm4v": glm4v,
    "glm4v_moe": glm4v_moe,
    "glm5_next": glm5_next,
    "glm_ocr": glm_ocr,
    "granite4_vision": granite4_vision,
    "hunyuan_vl": hunyuan_vl,
    "hyperclovax_vision_v2": hyperclovax_vision_v2,
    "idefics2": idefics2,
    "idefics2_split": idefics2_split,
    "inkling_mm_model": inkling_mm_model,
    "instructblip": instructblip,
    "janus": janus,
    "kimi_k25": kimi_k25,
    "lighton_ocr": lighton_ocr,
    "llama4": llama4,
    "llava_next_video": llava_next_video,
    "minicpmv4_6": minicpmv4_6,
    "minicpmv4_7": minicpmv4_7,
    "minimax_m3_vl": minimax_m3_vl,
    "mistral3": mistral3,
    "mllama": mllama,
    "muse_glimmer": muse_glimmer,
    "ovis2": ovis2,
    "paddleocr_vl": paddleocr_vl,
    "paligemma": paligemma,
    "paligemma2": paligemma2,
    "perception_lm": perception_lm,
    "phi4_multimodal": phi4_multimodal,
    "pixtral_llava": pixtral_llava,
    "qianfan_ocr": qianfan_ocr,
    "qwen2_5_omni_thinker": qwen2_5_omni_thinker,
    "qwen3_omni_moe_thinker": qwen3_omni_moe_thinker,
    "qwen3_vl_moe": qwen3_vl_moe,
    "qwen4_exp": qwen4_exp,
    "step3p7": step3p7,
    "video_llama_3": video_llama_3,
    "video_llava": video_llava,
    "vipllava": vipllava,
}
"""Every family that can be built. `make families` tries them all."""

REFUSED = {
    "blip2_t5": "encoder-decoder",
    "florence2": "encoder-decoder",
    "instructblip": "its Q-Former reads the text beside the image",
}
"""Those that are not trained, and what is said."""


def build_tiny(family: str, folder: Path | str, *, seed: int = 0, **sizes: int | float | bool | None) -> Path:
    """As `boresight.demo.tiny.build_tiny`, with a name in `ALL`."""
    built = build.build_tiny(ALL.get(family, family), folder, seed=seed, **sizes)
    if family == "mllama":
        open_gates(built)
    return built


def open_gates(folder: Path) -> None:
    """Mllama starts with gates at zero, through which nothing of an image passes; a trained one has them open."""
    model = AutoModelForImageTextToText.from_pretrained(folder)
    for name, weight in model.named_parameters():
        if "cross_attn" in name and name.endswith("gate"):
            weight.data.fill_(1.0)
    model.save_pretrained(folder)
