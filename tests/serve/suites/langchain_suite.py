"""langchain-tests over langchain-openai's ``ChatOpenAI``, in both of OpenAI's dialects: no test is left out by us.

Those that langchain itself leaves out are of pictures, sound and files, which this model does not have, and of a
recorded network.
"""

# pyright: reportMissingImports=false

import os
from typing import Any

from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestChat(ChatModelIntegrationTests):
    """Over ``/v1/chat/completions``."""

    supports_json_mode = True
    enable_vcr_tests = False
    returns_usage_metadata = True
    supports_model_override = True
    model_override_value = "scripted"

    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        url = f"{os.environ['AXK1_URL']}/v1"
        return {"model": "axk1", "base_url": url, "api_key": "none", "max_retries": 0, "stream_usage": True}


class TestResponses(TestChat):
    """Over ``/v1/responses``, which knows no stop strings."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return super().chat_model_params | {"use_responses_api": True}
