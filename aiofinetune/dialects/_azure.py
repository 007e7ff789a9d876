"""Azure OpenAI: OpenAI's API with headers, versions and parameters of Azure's own."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Final

import attrs

from aiofinetune.dialects._jobs import JOBS
from aiofinetune.dialects._requests import Endpoint
from aiofinetune.errors import APIError, BadRequest, NotFound


def _explain(error: APIError, endpoint: Endpoint[Any]) -> APIError:
    """Add advice to the answers of Azure that do not say what is wrong."""
    if isinstance(error, BadRequest) and endpoint.method == "POST" and "does not support fine-tuning" in error.message:
        advice = "Azure also says so if trainingType is missing: pass extra={'trainingType': 'Standard'}, for example"
    elif isinstance(error, NotFound) and endpoint.path.startswith("/uploads"):
        advice = "Azure takes uploads in parts only with an api_version, at a base_url that ends with /openai"
    else:
        return error
    return type(error)(error.status, f"{error.message}. {advice}", *error.args[2:])


AZURE: Final = attrs.evolve(
    JOBS,
    name="azure",
    about="Azure OpenAI and Azure AI Foundry",
    base_url=None,
    hosts=(".openai.azure.com", ".services.ai.azure.com"),
    key_header="api-key",
    takes_api_version=True,
    # Models are deployed, and their deployments deleted, by Azure's other APIs; a fine-tuned model is deleted here.
    max_form=100 << 20,
    filters_metadata=False,
    explain=_explain,
    missing=MappingProxyType({"completions of the model": "it is deployed first, by another API of Azure's"}),
)
