"""What lmms-eval finds by the entry point `lmms_eval.models`: a model called boresight."""

from __future__ import annotations

from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> ModelManifest:
    return ModelManifest(model_id="boresight", chat_class_path="boresight.evaluate.inside.model.Boresight")
