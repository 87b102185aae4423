"""Certificates and keys for tests, made with the openssl command in a temporary folder."""

import pathlib
import subprocess
import tempfile


def openssl(*arguments, data=None):
    done = subprocess.run(["openssl", *map(str, arguments)], input=data, capture_output=True, timeout=60)
    if done.returncode != 0:
        raise AssertionError(f"openssl {arguments}: {done.stderr.decode()}")
    return done.stdout


class Authority:
    """A root, and what it issues: paths of PEM files. For use in a with statement, which removes them."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="percore-")
        self.folder = pathlib.Path(self._folder.name)
        self.root, self._key = self.folder / "root.pem", self.folder / "root.key"
        self._request("root", self._key, self.root, "ec", "-x509", "-days", "10", "-subj", "/CN=percore test root")

    def _request(self, name, key, output, kind, *arguments):
        of_kind = ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"] if kind == "ec" else [kind]
        openssl("req", "-batch", "-nodes", "-newkey", *of_kind, "-keyout", key, "-out", output, *arguments)

    def issue(self, name, alternatives="", kind="ec", days=10):
        """The certificate and the key of `name`; `alternatives` as "DNS:a,IP:b"; `kind` ec or rsa:BITS."""
        certificate, key, request = (self.folder / f"{name}.{end}" for end in ("pem", "key", "csr"))
        self._request(name, key, request, kind, "-subj", f"/CN={name}")
        extensions = "basicConstraints=CA:FALSE\n" + (f"subjectAltName={alternatives}\n" if alternatives else "")
        (self.folder / "extensions").write_text(extensions)
        openssl("x509", "-req", "-in", request, "-CA", self.root, "-CAkey", self._key, "-CAcreateserial",
                "-days", str(days), "-extfile", self.folder / "extensions", "-out", certificate)
        return certificate, key

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._folder.cleanup()
