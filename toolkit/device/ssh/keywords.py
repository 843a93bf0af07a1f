"""The table of ssh_config's keywords: each with its treatment, so that none is dropped silently.

OpenSSH's own client heeds them all; the table tells what the client in this process does about each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Treatment = Literal["honoured", "handed over", "refused", "without effect"]


@dataclass(frozen=True)
class Keyword:
    """A keyword as `man ssh_config` writes it. `harmless` are values, besides the default, that change nothing."""

    name: str
    treatment: Treatment
    note: str
    harmless: tuple[str, ...] = ()


def _of(treatment: Treatment, *rows: tuple[str, str] | tuple[str, str, str]) -> Iterator[Keyword]:
    for name, note, *harmless in rows:
        yield Keyword(name, treatment, note, tuple(" ".join(harmless).split()))


_ALIAS = "the same, under its older name"
_OWN = "edgephi's own value in both clients"
_NO_FORWARD = "nothing is forwarded, with either client"
_NO_TERMINAL = "no terminal is asked for"
_LOCAL = "says how ssh talks to its user"
_KERBEROS = 'concerns Kerberos, with which OpenSSH\'s client alone logs in (`transport = "openssh"`)'
_OFF = "the older protocol that it is about isn't spoken"

KEYWORDS: dict[str, Keyword] = {
    keyword.name.lower(): keyword
    for keyword in (
        # Found by `ssh -G`, which evaluates all that decides which lines count.
        *_of(
            "honoured",
            ("Host", "ssh -G evaluates it"),
            ("Tag", "ssh -G evaluates it"),
            ("IgnoreUnknown", "ssh -G evaluates it"),
            ("CanonicalDomains", "ssh -G evaluates it"),
            ("CanonicalizeFallbackLocal", "ssh -G evaluates it"),
            ("CanonicalizeHostname", "ssh -G evaluates it"),
            ("CanonicalizeMaxDots", "ssh -G evaluates it"),
            ("CanonicalizePermittedCNAMEs", "ssh -G evaluates it"),
            ("HostName", "the address to dial"),
            ("User", "the target's own field comes first"),
            ("Port", "the target's own field comes first"),
            ("ProxyCommand", "carries the connection"),
            ("ProxyJump", "carries the connection; each hop's host key is explained when ssh refuses it"),
            ("ConnectTimeout", "10 s without it"),
            (
                "UserKnownHostsFile",
                "@revoked and @cert-authority lines count too; `known_hosts` of a target replaces it",
            ),
            ("GlobalKnownHostsFile", "as UserKnownHostsFile"),
            ("HostKeyAlias", "the name that is looked up"),
            ("HostKeyAlgorithms", "a list without any algorithm of our client is handed over"),
            ("CASignatureAlgorithms", "a host's certificate that is signed otherwise doesn't count"),
            ("HashKnownHosts", "when `edgephi targets trust` writes a key"),
            ("StrictHostKeyChecking", "as `yes` with either client, whatever it is: unknown keys are refused"),
            ("NoHostAuthenticationForLocalhost", "as `no` with either client: this machine's key is checked too"),
            ("UpdateHostKeys", "as `no` with either client: keys are learned by `edgephi targets trust` alone"),
            ("Ciphers", "the common ones, AES-GCM first; without a common one it is handed over"),
            ("MACs", "the common ones; without a common one it is handed over"),
            ("KexAlgorithms", "when it isn't the default: the common ones; without a common one it is handed over"),
            ("IdentityFile", "`identity_file` of a target comes first"),
            ("CertificateFile", "beside the certificates that lie beside keys"),
            ("IdentityAgent", "the agent's socket"),
            ("IdentitiesOnly", "limits the agent's keys"),
            ("PubkeyAuthentication", "`no` leaves keys out"),
            ("PasswordAuthentication", "`no` leaves passwords out"),
            ("KbdInteractiveAuthentication", "`no` leaves the server's questions out"),
            ("ChallengeResponseAuthentication", _ALIAS),
            ("PreferredAuthentications", "methods that it lacks are left out"),
            ("BatchMode", "`yes`: nobody is asked"),
            ("LogLevel", "below INFO a server's banner isn't shown"),
            ("SetEnv", "set for every command"),
            ("SendEnv", "set for every command; variables whose names say that they are secrets stay here"),
        ),
        # Only OpenSSH's client knows what to do: it carries the connection, and where it can't, that is an error.
        *_of(
            "handed over",
            ("RevokedHostKeys", "a list or a KRL of keys that no host may have", "none"),
            ("KnownHostsCommand", "a program that tells host keys", "none"),
            ("VerifyHostKeyDNS", "host keys in the DNS", "no false"),
            ("CheckHostIP", "the address beside the name in known_hosts", "no false"),
            ("RequiredRSASize", "the least size of RSA keys"),
            ("PubkeyAcceptedAlgorithms", "the algorithms of user keys"),
            ("PubkeyAcceptedKeyTypes", _ALIAS),
            ("HostbasedAuthentication", "a login by this machine's own key", "no false"),
            ("GSSAPIKeyExchange", "the server is known by Kerberos instead of a host key", "no false"),
            ("GSSAPITrustDns", "names for Kerberos", "no false"),
            ("KbdInteractiveDevices", "the devices to ask for"),
            ("PKCS11Provider", "keys on a token", "none"),
            ("SmartcardDevice", _ALIAS, "none"),
            ("SecurityKeyProvider", "keys on a FIDO token", "internal none"),
            ("AddressFamily", "IPv4 or IPv6 alone", "any"),
            ("BindAddress", "the address to dial from", "none"),
            ("BindInterface", "the interface to dial from", "none"),
            ("ConnectionAttempts", "tries to dial", "1"),
            ("ProxyUseFdpass", "a ProxyCommand that hands over a connected socket", "no false"),
            ("RefuseConnection", "ssh refuses with the words that it gives"),
            ("VersionAddendum", "what our greeting says", "none"),
            ("UsePrivilegedPort", "a port that only root may dial from", "no false"),
        ),
        *_of(
            "refused",
            ("ForkAfterAuthentication", "`yes`: ssh -G refuses it, for ssh would go on without edgephi"),
            ("Include", "on a machine without OpenSSH's client; else ssh -G evaluates it"),
            ("Match", "on a machine without OpenSSH's client, unless paramiko can evaluate it; else ssh -G does"),
        ),
        *_of(
            "without effect",
            ("AddKeysToAgent", "keys aren't given to the agent"),
            ("ServerAliveInterval", _OWN),
            ("ServerAliveCountMax", _OWN),
            ("Compression", "`no` in both clients: weights don't shrink"),
            ("CompressionLevel", _OFF),
            ("ControlMaster", "a connection of our own is opened; that to a jump host may be shared"),
            ("ControlPath", "as ControlMaster"),
            ("ControlPersist", "as ControlMaster"),
            ("NumberOfPasswordPrompts", "each secret is asked for once"),
            ("TCPKeepAlive", "a silent link is noticed by questions that a server must answer"),
            ("RekeyLimit", "new keys each 64 GiB, as OpenSSH's own default"),
            ("IPQoS", "a hint for routers"),
            ("ObscureKeystrokeTiming", "nobody types"),
            ("ChannelTimeout", "channels are closed when they aren't needed any more"),
            ("WarnWeakCrypto", "a warning of ssh's own"),
            ("PermitLocalCommand", "no local command is run, with either client"),
            ("LocalCommand", "no local command is run, with either client"),
            ("RemoteCommand", "edgephi's own commands are run, with either client"),
            ("SessionType", "edgephi's own commands are run, with either client"),
            ("StdinNull", "edgephi's commands need their stdin"),
            ("RequestTTY", _NO_TERMINAL),
            ("EscapeChar", _NO_TERMINAL),
            ("EnableEscapeCommandline", _NO_TERMINAL),
            ("ForwardAgent", _NO_FORWARD),
            ("ForwardX11", _NO_FORWARD),
            ("ForwardX11Timeout", _NO_FORWARD),
            ("ForwardX11Trusted", _NO_FORWARD),
            ("XAuthLocation", _NO_FORWARD),
            ("LocalForward", _NO_FORWARD),
            ("RemoteForward", _NO_FORWARD),
            ("DynamicForward", _NO_FORWARD),
            ("PermitRemoteOpen", _NO_FORWARD),
            ("ClearAllForwardings", _NO_FORWARD),
            ("ExitOnForwardFailure", _NO_FORWARD),
            ("GatewayPorts", _NO_FORWARD),
            ("StreamLocalBindMask", _NO_FORWARD),
            ("StreamLocalBindUnlink", _NO_FORWARD),
            ("Tunnel", _NO_FORWARD),
            ("TunnelDevice", _NO_FORWARD),
            ("EnableSSHKeysign", "concerns HostbasedAuthentication, which is handed over"),
            ("HostbasedAcceptedAlgorithms", "concerns HostbasedAuthentication, which is handed over"),
            ("HostbasedKeyTypes", _ALIAS),
            ("GSSAPIAuthentication", _KERBEROS),
            ("GSSAPIClientIdentity", _KERBEROS),
            ("GSSAPIServerIdentity", _KERBEROS),
            ("GSSAPIDelegateCredentials", _KERBEROS),
            ("GSSAPIRenewalForcesRekey", _KERBEROS),
            ("GSSAPIKexAlgorithms", _KERBEROS),
            ("FingerprintHash", "fingerprints are SHA256"),
            ("VisualHostKey", _LOCAL),
            ("LogVerbose", _LOCAL),
            ("SyslogFacility", _LOCAL),
            ("Protocol", _OFF),
            ("Cipher", _OFF),
            ("RSAAuthentication", _OFF),
            ("RhostsRSAAuthentication", _OFF),
        ),
    )
}

# Values that switch off what a configuration would do on the side. An older ssh doesn't know some of the keywords, so
# each is given only to an ssh that prints it.
SWITCHED_OFF = {
    "NoHostAuthenticationForLocalhost": "no",
    "StdinNull": "no",
    "SessionType": "subsystem",
    "Tunnel": "no",
    "AddKeysToAgent": "no",
    "VisualHostKey": "no",
}


def for_openssh_alone(values: Mapping[str, Sequence[str]], defaults: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The keywords, as the manual writes them, whose values only OpenSSH's client heeds.

    `values` and `defaults` have lower-case keywords. A keyword that the table lacks counts when it isn't the default.
    """
    return tuple(
        KEYWORDS[name].name if name in KEYWORDS else name
        for name, given in values.items()
        if _treatment(name) == "handed over" and list(given) != list(defaults.get(name, ()))
        if not {value.lower() for value in given} <= set(_harmless(name))
    )


def _treatment(name: str) -> Treatment:
    return KEYWORDS[name].treatment if name in KEYWORDS else "handed over"


def _harmless(name: str) -> tuple[str, ...]:
    return KEYWORDS[name].harmless if name in KEYWORDS else ()
