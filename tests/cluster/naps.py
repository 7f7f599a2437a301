"""`python -m naps --home DIR`: a program that the supervisor keeps running."""

import time

if __name__ == "__main__":
    time.sleep(600)
