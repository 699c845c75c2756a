"""Mutations of HTTP requests: method, path, query, headers, bodies, and what is no HTTP at all."""

from __future__ import annotations

from random import Random

from tests.faults.fuzz.mutations import BYTES, apply

METHODS = (
    *(b"GET",) * 12, b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT", b"PATCH", b"get", b"",
    b"G" * 70_000, b"GET\0", b"\xff\xfe", b"__init__", b"PRI",
)  # fmt: skip
PATHS = (
    b"/", b"/jobs/1", b"/jobs/2", b"/api/v1/jobs", b"/api/v1/jobs", b"/api/v1/jobs/1", b"/healthz", b"/readyz",
    b"/metrics", b"/sign-in", b"/sign-in", b"/sign-out", b"/sign-in/oidc", b"/sign-in/oidc/callback", b"/api/v1/audit",
    b"/api/v1/jobs/1/retry", b"/api/v1/jobs/cancel", b"/api/v1/deliveries", b"/api/v1/openapi.json",
    b"/static/console.css", b"/static/../server.py", b"/static/%2e%2e/server.py", b"/jobs/999999999", b"/jobs/-1",
    b"/jobs/%31", b"/jobs/\xd9\xa1", b"/../../etc/passwd", b"//[", b"*",
    b"http://127.0.0.1/api/v1/jobs", b"http://[::1/", b"/%00", b"/%ff%fe", b"/%", b"/jobs/1%0d%0aX:%20y", b"///////",
    b"/" + b"a" * 66_000, b"/" + b"/".join([b"x"] * 5000), b"/jobs/1;a=b#c", b"?", b"", b"\\",
    b"/<script>alert(1)</script>", b"/api/v1/<img%20src=x>", b"/jobs/1\x00", b"/jobs/\xe2\x80\xae",
)  # fmt: skip
NAMES = (b"state", b"study", b"patient", b"accession", b"since", b"limit", b"x", b"", b"state%00", b"since[]")
VALUES = (
    b"RECEIVING", b"FAILED", b"DONE", b"1", b"0", b"-1", b"1000", b"1001", b"1e3", b"9" * 5000, b"%D9%A1", b"1_0",
    b"+5", b"PID-whole", b"ACC-half", b"'", b"%27%20OR%201=1--", b"%00", b"%ff", b"%ed%a0%80", b"%", b"%zz",
    b"a" * 3000, b"2026-01-02T11:59Z", b"0001-01-01T00:00%2B23:59", b"9999-12-31T23:59-23:59", b"2026-01-02",
    b"2026-W01-1T00Z", b"20260102T115900Z", b"2026-01-02T11:59:00.123456789Z", b"2026-02-30T00:00Z",
    b"2026-01-02T11:59%2B00:00:00.000001", b"T", b"", b"%F0%9F%98%80",
)  # fmt: skip
HOSTS = (
    *(b"127.0.0.1",) * 10, b"localhost", b"[::1]:80", b"evil.example", b"", b"[", b"127.0.0.1:99999", b"127.0.0.1\0",
    b"127.0.0.1@evil.example", b"0x7f.1", b"2130706433", b"\xff", b"localhost.", b"127.0.0.1, evil.example",
)  # fmt: skip
HEADERS = (
    b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: 99999999999999999999", b"Content-Length: x",
    b"Transfer-Encoding: chunked", b"Expect: 100-continue", b"Connection: keep-alive", b"Connection: Upgrade",
    b"Upgrade: h2c", b"Range: bytes=0-", b"Cookie: " + b"a=b; " * 2000, b"X: " + b"y" * 70_000, b" folded", b"NoColon",
    b": empty", b"\0: \0", b"X:\xff\xfe", b"Content-Type: multipart/form-data; boundary=" + b"-" * 500,
    b"Content-Type: application/x-www-form-urlencoded", b"Content-Type: application/json", b"Content-Length: 300000",
    b"Authorization: Bearer \xff", b"Authorization: Bearer " + b"t" * 5000, b"Authorization: Basic OjA=",
    b"Cookie: knowmvg=\xff; knowmvg-form=a", b"Cookie: knowmvg-oidc=a.b.c.d", b"Origin: null", b"Origin: http://[",
    b"X-CSRF-Token: \xff", b"Host: evil.example", b"X-Forwarded-For: ' --", b"Accept: */*", b"Subject: =?utf-8?q?=ff?=",
)  # fmt: skip
VERSIONS = (
    *(b"HTTP/1.1",) * 6,
    *(b"HTTP/1.0",) * 3,
    b"HTTP/2.0",
    b"HTTP/0.9",
    b"HTTP/9" + b"9" * 50,
    b"",
    b"http/1.1",
    b"HTTP/1",
)
ENDS = (*(b"\r\n",) * 9, b"\n", b"\r", b"\r\r\n", b"\0")
BODIES = (
    b"",
    b"",
    b"",
    b"hello",
    b"name=a&password=b&csrf=c",
    b"csrf=%ff&name=%00&next=//evil.example",
    b'{"ids": [1]}',
    b'{"ids": [1e400]}',
    b"[" * 4000,
    b"5\r\nhello\r\n0\r\n\r\n",
    b"ffffffffffffffff\r\n",
    b"\0" * 5000,
    b"GET / HTTP/1.1\r\n\r\n",
)


def make_request(random: Random) -> bytes:
    """Return one request, or what is to look like one."""
    end = random.choice(ENDS)
    line = b" ".join([random.choice(METHODS), _draw_target(random), random.choice(VERSIONS)])
    lines = [line, b"Host: " + random.choice(HOSTS)]
    lines += random.choices(HEADERS, k=random.choice((0, 0, 1, 2, 5)))
    if random.random() < 0.02:
        lines += [b"X-%d: y" % number for number in range(random.choice((99, 101, 3000)))]
    request = end.join(lines) + end + end + random.choice(BODIES)
    if random.random() < 0.25:
        request = apply(BYTES, request, random, 3)
    return request * 2 if random.random() < 0.03 else request


def _draw_target(random: Random) -> bytes:
    path = random.choice(PATHS)
    if random.random() < 0.5:
        pairs = [random.choice(NAMES) + b"=" + random.choice(VALUES) for _ in range(random.choice((1, 1, 2, 3, 50)))]
        path += b"?" + random.choice((b"&", b"&", b";")).join(pairs)
    return path
