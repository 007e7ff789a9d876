"""What each kind of service says and how it says it. Pure functions and data, no I/O.

`DIALECTS` holds every dialect by its name. To speak to a service that differs in one point, pass
``dialect=attrs.evolve(DIALECTS["jobs"], …)`` to the session.
"""

from aiofinetune.dialects._choice import DIALECTS
from aiofinetune.dialects._dialect import Dialect, Endpoints, Follows, Recognises, Uploads

__all__ = ["DIALECTS", "Dialect", "Endpoints", "Follows", "Recognises", "Uploads"]
