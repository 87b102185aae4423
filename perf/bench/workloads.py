"""The eight published tests, and the one that separates full from resumed handshakes."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Test:
    name: str
    title: str
    body: int            # bytes, before encryption
    keep_alive: bool
    tls: bool = False
    aes: bool = False
    sleep_ms: int = 0
    tickets: bool = True  # off: every TLS handshake is full
    reference: str = ""   # the file of published figures in gnuplot/reference/c5.metal

    @property
    def needs(self):
        """What a server must be able to do for it."""
        return {word for word, wanted in (("tls", self.tls), ("aes", self.aes), ("sleep", self.sleep_ms > 0)) if wanted}


PUBLISHED = [
    Test("1", "1 kB, a connection per request", 1024, False, reference="test01.dat"),
    Test("1-tls", "1 kB, TLS, a connection per request (resumed handshakes)", 1024, False, tls=True,
         reference="test01_tls.dat"),
    Test("2", "1 kB, keep-alive", 1024, True, reference="test02.dat"),
    Test("2-tls", "1 kB, TLS, keep-alive", 1024, True, tls=True, reference="test02_tls.dat"),
    Test("3", "AES-128-CBC of 1 kB, a connection per request", 1024, False, aes=True, reference="test03.dat"),
    Test("4", "AES-128-CBC of 1 kB, keep-alive", 1024, True, aes=True, reference="test04.dat"),
    Test("5", "128 B after 1 ms of sleep, keep-alive", 128, True, sleep_ms=1, reference="test05.dat"),
    Test("6", "16 kB, a connection per request", 16384, False, reference="test06.dat"),
]
# wrk resumes every session, and so did the published test 1-tls after its first 1000 handshakes: here each is full.
FURTHER = [Test("1-tls-full", "1 kB, TLS, a connection per request (full handshakes)", 1024, False, tls=True,
                tickets=False)]
ALL = {test.name: test for test in PUBLISHED + FURTHER}
DEFAULT_NAMES = [test.name for test in PUBLISHED]

# Connections of the published tests, and the length of a run there.
PUBLISHED_CONNECTIONS = 1000
PUBLISHED_DURATION_S = 10


def published_schedule(cpus):
    """The core counts that the published script runs on a node with so many CPUs: all up to 4, then even ones, from 18 on
    multiples of 6, and always the last. On c5.metal, whose node has 48: 1 2 3 4 6 8 10 12 14 16 18 24 30 36 42 48."""
    return [n for n in range(1, cpus + 1)
            if n == cpus or not ((cpus > 12 and n > 4 and n % 2) or (n > 16 and n % 3))]
