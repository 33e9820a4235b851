"""What can go wrong between a client and the Hub, one dataclass."""

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["none", "status", "reset", "lost_reply", "slow", "stall", "truncate", "revoke"]


@dataclass
class Fault:
    """Happens to the next `times` requests (None: to all) in whose "METHOD /path" the regex `request` is found.

    none        nothing; listed before another fault, it lets the first `times` requests pass
    status      answered with `status` and an HTML page, as a gateway does; nothing is done
    reset       the connection is reset when half of the request's body has arrived; nothing is done
    lost_reply  the request is carried out, then the connection is reset before the reply
    slow        both bodies pass in `pieces` pieces, `delay` seconds apart
    stall       for `delay` seconds nothing is read, then the connection is reset; nothing is done
    truncate    the reply announces its full length, sends half of it and closes
    revoke      from this request on the token is not valid any more
    """

    kind: Kind
    request: str
    times: int | None = None
    status: int = 503
    pieces: int = 1
    delay: float = 0.0
    seen: int = 0

    def strikes(self, request: str) -> bool:
        if not re.search(self.request, request) or self.seen == self.times:
            return False
        self.seen += 1
        return True
