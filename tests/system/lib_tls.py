# SPDX-License-Identifier: Apache-2.0
"""Certificates and keys for tests, made with GnuTLS's own tools, and the words that clients need."""
import os

from lib_tools import run


# Lines of a template for the period of validity.
FOR_A_WEEK = "expiration_days = 7\n"
LONG_AGO = 'activation_date = "2020-01-01 00:00:00"\nexpiration_date = "2021-02-03 04:05:06"\n'
MUCH_LATER = 'activation_date = "2092-01-01 00:00:00"\nexpiration_date = "2093-01-01 00:00:00"\n'


class Authority:
    """A certificate authority in a directory of its own; one under another where that is given."""

    def __init__(self, directory, name="Test CA", dates=FOR_A_WEEK, under=None):
        self.directory = str(directory)
        os.makedirs(self.directory, exist_ok=True)
        self.key = os.path.join(self.directory, "ca-key.pem")
        self.certificate = os.path.join(self.directory, "ca-cert.pem")
        self._key(self.key)
        how = (["--generate-self-signed"] if under is None else
               ["--generate-certificate", "--load-ca-certificate", under.certificate,
                "--load-ca-privkey", under.key])
        run("certtool", *how, "--load-privkey", self.key, "--template",
            self._template("ca", f'cn = "{name}"\nca\ncert_signing_key\ncrl_signing_key\n', dates),
            "--outfile", self.certificate)

    def _template(self, name, text, dates=FOR_A_WEEK):
        path = os.path.join(self.directory, f"{name}.info")
        with open(path, "w", encoding="ascii") as stream:
            stream.write(text + dates)
        return path

    @staticmethod
    def _key(path, kind=("ecdsa",)):
        run("certtool", "--generate-privkey", "--key-type", *kind, "--outfile", path)

    def issue(self, role, directory, name, extra="", key_kind=("ecdsa",), dates=FOR_A_WEEK):
        """role: server or client. Puts {role}-cert.pem, {role}-key.pem and ca-cert.pem there."""
        os.makedirs(directory, exist_ok=True)
        key = os.path.join(directory, f"{role}-key.pem")
        certificate = os.path.join(directory, f"{role}-cert.pem")
        self._key(key, key_kind)
        template = self._template(
            f"{role}-{name}", f'organization = "Example"\ncn = "{name}"\ndns_name = "localhost"\n'
            f'ip_address = "127.0.0.1"\ntls_www_{role}\nsigning_key\n{extra}', dates)
        run("certtool", "--generate-certificate", "--load-ca-certificate", self.certificate,
            "--load-ca-privkey", self.key, "--load-privkey", key, "--template", template,
            "--outfile", certificate)
        with open(self.certificate, "rb") as source, \
                open(os.path.join(directory, "ca-cert.pem"), "wb") as out:
            out.write(source.read())
        return str(directory)

    def revoke(self, certificate, path, dates="crl_next_update = 7\n"):
        """A revocation list with this one certificate in it."""
        run("certtool", "--generate-crl", "--load-ca-privkey", self.key, "--load-ca-certificate",
            self.certificate, "--load-certificate", certificate, "--template",
            self._template("crl", dates + "crl_number = 1\n", ""), "--outfile", path)


def psk_file(path, **keys):
    """Lines NAME:KEY. Returns the path."""
    with open(path, "w", encoding="ascii") as stream:
        for name, key in keys.items():
            stream.write(f"{name}:{key}\n")
    return str(path)


def certificate_uri(server, directory, name=None):
    name = server.name() if name is None else name
    if server.tcp:
        return f"nbds://127.0.0.1:{server.port}/{name}?tls-certificates={directory}"
    return f"nbds+unix:///{name}?socket={server.socket}&tls-certificates={directory}"


def psk_uri(server, path, user, name=None):
    name = server.name() if name is None else name
    return f"nbds+unix://{user}@/{name}?socket={server.socket}&tls-psk-file={path}"
