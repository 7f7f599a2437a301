"""The transport against a server that fails in every way: what is retried, what is an answer, what is unknown."""

import base64
import json
import subprocess
import sys
import threading
import time

import pytest
import yaml
from kubernetes.config import incluster_config

from cluster import faults
from mlspec_reconciler.cluster import Refused, Unavailable
from mlspec_reconciler.clusters.kube import errors, login
from mlspec_reconciler.clusters.kube.transport import APPLY_TYPE, Transport

MAP = "/api/v1/namespaces/ml/configmaps"


def serve(verb, path, body):
    """An API server with three config maps, two to a page."""
    if verb == "LIST":
        start = int(path.rpartition("continue=")[2]) if "continue=" in path else 0
        names = ["a", "b", "c"][start : start + 2] if "limit=" in path else ["a", "b", "c"]
        metadata = {"resourceVersion": "7"} | (
            {"continue": str(start + 2)} if "limit=" in path and start < 2 else {}
        )
        items = [{"metadata": {"name": name}} for name in names]
        return faults.Reply(
            {"kind": "ConfigMapList", "apiVersion": "v1", "metadata": metadata, "items": items}
        )
    return faults.Reply({"kind": "ConfigMap", "metadata": {"name": "a"}, "sent": json.loads(body or b"{}")})


@pytest.fixture
def proxy():
    with faults.Proxy(serve) as proxy:
        yield proxy


@pytest.fixture
def dial(proxy, tmp_path):
    opened = []

    def dial(**options):
        options = {"budget": 5.0, "timeout": 2.0} | options
        opened.append(Transport.open(None, kubeconfig=proxy.kubeconfig(tmp_path, "tok"), **options))
        return opened[-1]

    yield dial
    for transport in opened:
        transport.close()


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(proxy, dial, status):
    """A rolling control plane must not fail an apply."""
    proxy.add(faults.Answer(status), times=2)
    transport = dial()
    assert transport.request("GET", f"{MAP}/a").status == 200
    assert transport.calls["GET"] == proxy.count("GET") == 3


def test_retry_after_is_honoured(proxy, dial):
    """The server knows when it can be asked; asking earlier makes it worse."""
    proxy.add(faults.Answer(429, retry_after=1), times=1)
    start = time.monotonic()
    dial().request("PATCH", f"{MAP}/a", body={}, content_type=APPLY_TYPE)
    assert time.monotonic() - start >= 1.0


def test_a_wait_beyond_the_budget_ends_at_once(proxy, dial):
    """Nobody should wait for a refusal that is certain now."""
    proxy.add(faults.Answer(503, retry_after=100, message="draining"))
    start = time.monotonic()
    with pytest.raises(Unavailable, match=r"answered 503: draining; given up after 5 s"):
        dial().request("GET", f"{MAP}/a")
    assert time.monotonic() - start < 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (faults.Answer(500, message="etcd is down"), "answered 500: etcd is down; given up after 1 s"),
        (faults.Answer(502, body=b"<html>token=abc</html>"), "answered 502; given up"),
        (faults.Cut(), "broke the connection; given up"),
        (faults.Cut(within=True), "broke the connection; given up"),
        (faults.Stall(), "does not answer in time; given up"),
    ],
)
def test_when_the_budget_is_used_up_nothing_is_known(proxy, dial, fault, words):
    """`Unavailable` in one sentence, in time, and the server was not hammered meanwhile."""
    proxy.add(fault)
    start = time.monotonic()
    with pytest.raises(Unavailable) as failure:
        dial(budget=1.0, timeout=0.4).request("GET", f"{MAP}/a")
    assert words in str(failure.value)
    assert "\n" not in str(failure.value)
    assert "abc" not in str(failure.value)
    assert time.monotonic() - start < 2.5
    assert proxy.count() <= 12


def test_many_threads_together_do_not_hammer_a_failing_server(proxy, dial):
    """Each of 16 callers backs off; the bound on retries holds for all of them together."""
    proxy.add(faults.Answer(500))
    transport = dial(budget=3.0, concurrency=16, retry_rate=5, retry_burst=10)

    def ask(number):
        with pytest.raises(Unavailable):
            transport.request("GET", f"{MAP}/{number}")

    transport.each(ask, range(16))
    assert 16 <= proxy.count() <= 16 + 10 + 3 * 5


def test_a_create_is_not_repeated_when_it_may_have_happened(proxy, dial):
    """Two runs of one training would both be paid for."""
    for fault in (faults.Lost(0), faults.Lost(504), faults.Answer(500)):
        proxy.clear()
        proxy.add(fault, verb="POST")
        before = proxy.count("POST")
        with pytest.raises(Unavailable, match="whether its POST was done is not known"):
            dial().request("POST", MAP, body={}, retry=False)
        assert proxy.count("POST") == before + 1


@pytest.mark.parametrize("fault", [faults.Answer(429), faults.Answer(503, retry_after=0)])
def test_a_create_that_certainly_did_nothing_is_repeated(proxy, dial, fault):
    """A throttled create is not a failure."""
    proxy.add(fault, verb="POST", times=2)
    assert dial().request("POST", MAP, body={}, retry=False).status == 200


def test_a_closed_port_is_asked_again_and_then_told(tmp_path):
    """An API server that restarts answers nothing for seconds."""
    with faults.Proxy(serve) as gone:
        kubeconfig = gone.kubeconfig(tmp_path)
    transport = Transport.open(None, kubeconfig=kubeconfig, budget=1.0)
    with pytest.raises(Unavailable, match="refused; is the cluster running"):
        transport.request("POST", MAP, body={}, retry=False)
    assert transport.calls["POST"] > 1


REFUSALS = [
    (409, "AlreadyExists", errors.AlreadyExists),
    (409, "Conflict", errors.ConflictError),
    (410, "Expired", errors.Gone),
    (422, "Invalid", errors.Invalid),
    (403, "Forbidden", errors.Forbidden),
    (404, "NotFound", errors.NotServed),
    (400, "BadRequest", errors.ApiError),
]


@pytest.mark.parametrize(("status", "reason", "kind"), REFUSALS)
def test_a_refusal_is_an_answer_and_is_not_repeated(proxy, dial, status, reason, kind):
    """Asking again cannot help, and 404 without a name says that the resource is unknown, not that the object is."""
    cause = {"field": ".spec.replicas", "reason": "FieldManagerConflict", "message": 'conflict with "hpa"'}
    proxy.add(faults.Answer(status, reason, "no", causes=(cause,)))
    with pytest.raises(errors.ApiError) as failure:
        dial().request("PATCH", f"{MAP}/a", body={})
    assert type(failure.value) is kind
    assert failure.value.causes == (
        errors.Cause(".spec.replicas", "FieldManagerConflict", 'conflict with "hpa"'),
    )
    assert proxy.count() == 1


@pytest.mark.parametrize("status", [200, 404, 403, 302])
def test_the_page_of_a_proxy_is_no_answer(proxy, dial, status):
    """A login page with 404 must never look like an object that is gone."""
    proxy.add(faults.Answer(status, body=b"<html>Sign in</html>"))
    with pytest.raises(Unavailable, match="not JSON"):
        dial().request("GET", f"{MAP}/a")


def test_lists_are_read_page_by_page_and_complete_their_objects(proxy, dial):
    """Items of a list lack apiVersion and kind."""
    items, version = dial().list(MAP, query={"labelSelector": "a=b"})
    assert [item["metadata"]["name"] for item in items] == ["a", "b", "c"]
    assert {(item["apiVersion"], item["kind"]) for item in items} == {("v1", "ConfigMap")}
    assert version == "7"
    assert proxy.count("LIST", "labelSelector=a%3Db") == 2


@pytest.mark.parametrize(("times", "requests"), [(1, 4), (3, 7)])
def test_pages_that_expire_start_again_from_the_beginning(proxy, dial, times, requests):
    """No object twice, none missing; the last try asks for everything at once and cannot expire."""
    proxy.add(faults.Answer(410), path="continue", times=times)
    items, _ = dial().list(MAP)
    assert [item["metadata"]["name"] for item in items] == ["a", "b", "c"]
    assert proxy.count("LIST") == requests


def test_each_keeps_the_order_and_puts_a_refusal_in_its_place(proxy, dial):
    """One bad object must not hide what became of the others."""
    proxy.add(faults.Answer(422), path="/3$")
    transport = dial(concurrency=4)
    answers = transport.each(lambda number: transport.request("GET", f"{MAP}/{number}").status, range(8))
    assert [answer for answer in answers if answer != 200] == [answers[3]]
    assert isinstance(answers[3], errors.Invalid)
    assert transport.calls["GET"] == 8


def test_each_ends_when_the_server_is_gone(proxy, dial):
    """1,000 objects must not wait for 1,000 budgets."""
    proxy.add(faults.Answer(500))
    transport = dial(budget=0.5, concurrency=4)
    with pytest.raises(Unavailable):
        transport.each(lambda number: transport.request("GET", f"{MAP}/{number}"), range(1000))
    assert len({seen.path for seen in proxy.seen}) < 20


def test_the_rate_is_bounded(proxy, dial):
    """Also when all is well."""
    transport = dial(rate=20, burst=5, concurrency=4)
    start = time.monotonic()
    transport.each(lambda number: transport.request("GET", f"{MAP}/{number}"), range(15))
    assert 0.4 < time.monotonic() - start < 3


def test_secrets_are_hidden_in_what_the_server_echoes(proxy, dial):
    """CVE-2025-23216 of Argo CD: the server repeats an invalid Secret in its error."""
    secret = {"kind": "Secret", "data": {"k": "aHVudGVyMg=="}, "stringData": {"p": 'pass"word\n1'}}
    echo = 'illegal base64 "aHVudGVyMg==" hunter2 "pass\\"word\\n1" canary: Invalid value: {"env": "x"}: no'
    for fault in (
        faults.Answer(422, "Invalid", echo, causes=({"message": echo},)),
        faults.Answer(500, message=echo),
    ):
        proxy.clear()
        proxy.add(fault)
        transport = dial(budget=0.3)
        transport.hide(["canary"])
        with pytest.raises((errors.Invalid, Unavailable)) as failure:
            transport.request("PATCH", "/api/v1/namespaces/ml/secrets/s", body=secret)
        shown = str(failure.value) + str(getattr(failure.value, "causes", ""))
        for word in ("aHVudGVyMg", "hunter2", "pass", "canary", "env"):
            assert word not in shown
        assert "illegal base64" in shown


def test_events_come_as_they_are_sent_and_a_stream_can_be_closed_from_outside(proxy, dial):
    """A watch waits for minutes; Ctrl-C must not."""
    event = {"type": "ADDED", "object": {"metadata": {"uid": "1"}}}
    hold = threading.Event()

    def stream():
        yield event
        hold.wait(20)

    proxy.server = lambda *_: faults.Reply(stream())
    events = dial().stream(MAP, query={"watch": "1"}, idle=20)
    assert next(events) == event
    start = time.monotonic()
    threading.Timer(0.2, events.close).start()
    with pytest.raises((Unavailable, StopIteration)):
        next(events)
    assert time.monotonic() - start < 2
    hold.set()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (faults.Events(stop=1, by="cut"), "broke the connection"),
        (faults.Events(stop=1, by="stall"), "does not answer in time"),
        (faults.Events(garbage=True), "broken event"),
        (faults.Answer(200, body=b"<html>"), "within an event"),
    ],
)
def test_a_broken_stream_says_so(proxy, dial, fault, words):
    """A watch that is silent for ever looks like a cluster in which nothing happens."""
    event = {"type": "ADDED", "object": {"metadata": {"uid": "1"}}}
    proxy.server = lambda *_: faults.Reply([event, event])
    proxy.add(fault)
    with pytest.raises(Unavailable, match=words):
        list(dial().stream(MAP, query={"watch": "1"}, idle=0.5))


def test_a_refused_stream_tells_when_to_come_back(proxy, dial):
    """The reflector paces itself by it."""
    proxy.add(faults.Answer(429, retry_after=3))
    with pytest.raises(errors.Busy, match="answered 429") as failure:
        dial().stream(MAP, query={"watch": "1"}, idle=1)
    assert failure.value.retry_after == 3
    proxy.clear()
    proxy.add(faults.Answer(410))
    with pytest.raises(errors.Gone):
        dial().stream(MAP, query={"watch": "1"}, idle=1)


def kubeconfig(tmp_path, text="", **changes):
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "one",
        "contexts": [{"name": "one", "context": {"cluster": "c", "user": "u", "namespace": "ml"}}],
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {"token": "t0ps3cret"}}],
    } | changes
    file = tmp_path / "config"
    file.write_text(text or yaml.safe_dump(document))
    return file


@pytest.mark.parametrize(
    ("context", "change", "words"),
    [
        ("two", {}, "has no context two; it has: one"),
        (None, {"current-context": ""}, "has no current context; name one in the target: one"),
        (None, {"text": "[]"}, "is not a kubeconfig"),
        (None, {"text": "a: [b"}, "is not a kubeconfig"),
        (None, {"clusters": []}, "Expected object with name c"),
        (None, {"clusters": [{"name": "c", "cluster": {}}]}, "names no server"),
        (None, {"users": []}, "names the user u, which is not there"),
        (
            None,
            {"users": [{"name": "u", "user": {"exec": {"command": "no-such-login", "apiVersion": "v1"}}}]},
            "no-such-login is not installed; log in again",
        ),
    ],
)
def test_a_broken_kubeconfig_is_one_sentence_without_its_secrets(tmp_path, context, change, words):
    """The official client prints a broken entry with the token in it, or goes on as an anonymous user."""
    with pytest.raises(Unavailable) as failure:
        Transport.open(context, kubeconfig=kubeconfig(tmp_path, **change))
    assert words in str(failure.value)
    assert "t0ps3cret" not in str(failure.value)


def test_without_a_kubeconfig_outside_a_pod(tmp_path, monkeypatch):
    """The first error that a new user meets."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(Unavailable, match="does not exist and this is not a pod; set KUBECONFIG"):
        Transport.open(None)


PLUGIN = """#!/bin/sh
echo >> {folder}/calls
token=$(cat {folder}/token) || exit 1
echo '{{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {{"token": "'$token'"}}}}'
"""


def test_a_login_program_is_run_again_when_its_token_is_refused(proxy, tmp_path):
    """Tokens end before their time when somebody logs out; the official client would fail until its restart."""
    program = tmp_path / "login"
    program.write_text(PLUGIN.format(folder=tmp_path))
    program.chmod(0o755)
    (tmp_path / "token").write_text("first")
    plugin = {"command": str(program), "apiVersion": "client.authentication.k8s.io/v1"}
    cluster = [{"name": "c", "cluster": {"server": proxy.url}}]
    file = kubeconfig(tmp_path, users=[{"name": "u", "user": {"exec": plugin}}], clusters=cluster)
    transport = Transport.open(None, kubeconfig=file, concurrency=4)
    rule = proxy.add(faults.Answer(401))
    (tmp_path / "token").write_text("second")
    rule.left = 1
    answers = transport.each(lambda number: transport.request("GET", f"{MAP}/{number}").status, range(4))
    assert list(answers) == [200] * 4
    assert (tmp_path / "calls").read_text().count("\n") == 2
    rule.left = 10
    with pytest.raises(Unavailable, match="does not know us"):
        transport.request("GET", f"{MAP}/a")
    (tmp_path / "token").unlink()
    with pytest.raises(Unavailable, match=r"login program failed.*log in again"):
        transport.request("GET", f"{MAP}/a")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of 127.0.0.1 that signed itself, with its key."""
    folder = tmp_path_factory.mktemp("tls")
    request = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=127.0.0.1"
    request += f" -addext subjectAltName=IP:127.0.0.1 -keyout {folder}/key -out {folder}/crt"
    subprocess.run(request.split(), check=True, capture_output=True)
    pem = folder / "both.pem"
    pem.write_text((folder / "key").read_text() + (folder / "crt").read_text())
    return pem


def test_no_key_of_a_kubeconfig_stays_in_a_file(tmp_path, monkeypatch, certificate):
    """The official client unpacks client keys into files in the temporary folder and keeps them there."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    crt = key = base64.b64encode(certificate.read_bytes()).decode()
    with faults.Proxy(serve, certificate=certificate) as proxy:
        file = kubeconfig(
            tmp_path,
            clusters=[{"name": "c", "cluster": {"server": proxy.url, "certificate-authority-data": crt}}],
            users=[{"name": "u", "user": {"client-certificate-data": crt, "client-key-data": key}}],
        )
        assert Transport.open(None, kubeconfig=file).request("GET", f"{MAP}/a").status == 200
        assert list((tmp_path / "tmp").iterdir()) == []
        untrusted = kubeconfig(tmp_path, clusters=[{"name": "c", "cluster": {"server": proxy.url}}])
        transport = Transport.open(None, kubeconfig=untrusted)
        with pytest.raises(Unavailable, match="certificate that cannot be trusted"):
            transport.request("GET", f"{MAP}/a")
        assert transport.calls["GET"] == 1


def test_who_impersonates_has_no_more_rights_than_the_other(control_plane, tmp_path):
    """The official client ignores `as` and would act as the administrator."""
    document = yaml.safe_load(control_plane.kubeconfig.read_text())
    document["users"][0]["user"] |= {"as": "eve", "as-groups": ["readers", "system:authenticated"]}
    file = tmp_path / "config"
    file.write_text(yaml.safe_dump(document))
    transport = Transport.open(None, kubeconfig=file)
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    answer = transport.request("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", body=review)
    user = answer.body["status"]["userInfo"]
    assert (user["username"], user["groups"]) == ("eve", ["readers", "system:authenticated"])
    with pytest.raises(errors.Forbidden, match='User "eve" cannot get resource "secrets"'):
        transport.request("GET", "/api/v1/namespaces/default/secrets/a")
    with pytest.raises(Refused, match="acts as somebody else, which only an API server understands"):
        transport.authorization()  # another server would let the administrator in


def test_in_a_pod_the_service_account_is_used_and_its_new_token_is_read(tmp_path, monkeypatch, certificate):
    """Tokens of pods are replaced every hour."""
    account = tmp_path / "account"
    account.mkdir()
    (account / "namespace").write_text("team-a")
    (account / "ca.crt").write_text(certificate.read_text())
    (account / "token").write_text("first")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setattr(login, "_SERVICE_ACCOUNT", account)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(account / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(account / "ca.crt"))
    with faults.Proxy(serve, certificate=certificate) as proxy:
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", proxy.url.rpartition(":")[2])
        transport = Transport.open(None)
        assert (transport.namespace_of_context, transport.server) == ("team-a", proxy.url)
        (account / "token").write_text("second\n")
        proxy.add(faults.Answer(401), times=1)
        assert transport.request("GET", f"{MAP}/a").status == 200
        assert transport._login.credentials().headers == (("authorization", "bearer second"),)


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(proxy, dial, monkeypatch):
    """kind and k3d listen on loopback; kubectl works there behind any proxy."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "example.org")
    assert dial(budget=0.5).request("GET", f"{MAP}/a").status == 200


def test_what_needs_no_cluster_does_not_wait_for_the_client():
    """Importing the official client takes longer than validating a project."""
    code = "import mlspec_reconciler.cli, sys; print('kubernetes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
