"""The processor of a chat model that sees, also where the package that transformers needs for videos is absent."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import ProcessorMixin


def takes_video(processor: ProcessorMixin) -> bool:
    """Whether a processor can work on videos, and its chat template has a place for them."""
    from transformers.video_processing_utils import VideoProcessorMixin

    part = getattr(processor, "video_processor", None)
    # The base class alone is what `load_processor` puts in the place of one that cannot be had.
    if part is None or type(part) is VideoProcessorMixin:
        return False
    text = {"type": "text", "text": "?"}
    try:
        with_video, without = (
            processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
            for content in ([{"type": "video"}, text], [text])
        )
    except Exception:  # a template may raise anything to say that it takes none
        return False
    return bool(with_video != without)


def load_processor(model: str) -> ProcessorMixin:
    """The processor of a chat model: its tokenizer, image processor and, where that can be had, video processor.

    transformers' video processors need torchvision. Without it the processor is put together from the other
    parts, so that the model can look at pictures. Raises ValueError for what is no such model.
    """
    from transformers import AutoProcessor

    processor = _without_video(model) if importlib.util.find_spec("torchvision") is None else None
    processor = processor or AutoProcessor.from_pretrained(model)
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise ValueError("it does not look at pictures; give a vision-language model")
    if not processor.chat_template:
        processor.chat_template = processor.tokenizer.chat_template
    if not processor.chat_template:
        raise ValueError("it has no chat template; give a model made for chat")
    return processor


def _without_video(model: str) -> ProcessorMixin | None:
    """The processor of a model with an empty place for videos, None where there is no such place."""
    from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.video_processing_utils import VideoProcessorMixin

    config = AutoConfig.from_pretrained(model)
    kind: Any = PROCESSOR_MAPPING.get(type(config), None)
    loaders: dict[str, Callable[[], Any]] = {
        "tokenizer": lambda: AutoTokenizer.from_pretrained(model),
        "image_processor": lambda: AutoImageProcessor.from_pretrained(model),
        "video_processor": VideoProcessorMixin,
    }
    parts = kind.get_attributes() if kind else []
    if "video_processor" not in parts or not set(parts) <= set(loaders):
        return None
    # transformers cannot check the class of a video processor where it has none.
    unchecked = {"check_argument_for_proper_class": lambda self, name, part: type(part)}
    settings, _ = kind.get_processor_dict(model)
    without: Any = type(kind.__name__, (kind,), unchecked)
    return without.from_args_and_dict([loaders[part]() for part in parts], settings)
