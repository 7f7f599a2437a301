"""`python -m fails --home DIR`: a program of the supervisor that ends as the file `how` in DIR says, until it says `well`."""

import os
import signal
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    print("hello", file=sys.stderr, flush=True)
    match (Path(sys.argv[2]) / "how").read_text():
        case "well":
            time.sleep(600)
        case "raise":
            raise ZeroDivisionError("float divmod()")
        case "say":
            sys.exit("error: the revision is gone\nthat is all")
        case "exit":
            print("line 1", flush=True)
            sys.exit(1)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "leave":
            sys.exit(0)
