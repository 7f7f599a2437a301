"""What a real API server says when it refuses, and what of it may be shown."""

import pytest

from cluster import faults
from mlspec_reconciler.cluster import Unavailable
from mlspec_reconciler.clusters.kube import errors, transport
from mlspec_reconciler.clusters.kube.transport import APPLY_TYPE, MERGE_TYPE, Transport


@pytest.fixture
def space(control_plane):
    return control_plane.namespace("errors")


@pytest.fixture
def server(control_plane):
    opened = Transport.open(None, kubeconfig=control_plane.kubeconfig)
    yield opened
    opened.close()


def apply(server, path, body, **query):
    query = {"fieldManager": "mlspec", "force": "false", "fieldValidation": "Strict"} | query
    return server.request("PATCH", path, query=query, body=body, content_type=APPLY_TYPE)


def config_map(name, **data):
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def test_a_conflict_names_the_field_and_its_manager(server, space):
    """The plan shows both; the status and the reason alone would say neither."""
    path = f"/api/v1/namespaces/{space}/configmaps/a"
    apply(server, path, config_map("a", k="1"), fieldManager="somebody")
    with pytest.raises(errors.ConflictError) as failure:
        apply(server, path, config_map("a", k="2"))
    (cause,) = failure.value.causes
    assert (cause.field, cause.reason) == (".data.k", "FieldManagerConflict")
    assert 'conflict with "somebody"' in cause.message


def test_absent_and_unknown_are_not_the_same(server, space):
    """Only the first is a proof that may lead to a deletion."""
    with pytest.raises(errors.NotFound):
        server.request("GET", f"/api/v1/namespaces/{space}/configmaps/a")
    with pytest.raises(errors.NotFound):
        server.request("POST", "/api/v1/namespaces/no-such/configmaps", body=config_map("a"))
    for path in (f"/api/v1/namespaces/{space}/gadgets/a", f"/apis/no.such/v1/namespaces/{space}/a/b", "/zzz"):
        with pytest.raises(errors.NotServed):
            server.request("GET", path)


def test_one_name_is_taken_once(server, space):
    """AlreadyExists and Conflict are both 409."""
    maps = f"/api/v1/namespaces/{space}/configmaps"
    created = server.request("POST", maps, body=config_map("a"), retry=False).body
    with pytest.raises(errors.AlreadyExists):
        server.request("POST", maps, body=config_map("a"), retry=False)
    old = config_map("a") | {"metadata": {"name": "a", "resourceVersion": "1"}}
    with pytest.raises(errors.ConflictError):
        apply(server, f"{maps}/a", old)
    options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": "another"}}
    with pytest.raises(errors.ConflictError):
        server.request("DELETE", f"{maps}/a", body=options)
    options["preconditions"]["uid"] = created["metadata"]["uid"]
    assert server.request("DELETE", f"{maps}/a", body=options).status == 200


def test_an_immutable_field_is_named_without_the_object_around_it(server, space):
    """The server repeats the whole pod template, with the environment in it."""
    container = {"name": "m", "image": "i", "env": [{"name": "PASSWORD", "value": "t0ps3cret"}]}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "j"},
        "spec": {
            "suspend": False,
            "template": {"spec": {"restartPolicy": "Never", "containers": [container]}},
        },
    }
    path = f"/apis/batch/v1/namespaces/{space}/jobs/j"
    apply(server, path, job)
    container["image"] = "other"
    with pytest.raises(errors.Invalid) as failure:
        apply(server, path, job)
    (cause,) = failure.value.causes
    assert cause.field == "spec.template"
    assert cause.message == "Invalid value: {...}: field is immutable"
    assert "t0ps3cret" not in str(failure.value)
    assert "field is immutable" in str(failure.value)


def deployment(container=None, **spec):
    container = {"name": "m", "image": "i"} | (container or {})
    spec = {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [container]}},
    } | spec
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec}


CONTAINER = 'spec.template.spec.containers[name="m"]'


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        (deployment(nodes=1), "spec.nodes", "field not declared in schema"),
        (deployment(replicas="x"), "spec.replicas", "expected numeric (int or float), got string"),
        (
            deployment({"env": [{"name": "A", "value": 5}]}),
            f'{CONTAINER}.env[name="A"].value',
            "expected string",
        ),
        (deployment({"resources": {"limits": {"cpu": "x"}}}), "", "quantities must match"),
        (
            deployment({"ports": [{"containerPort": 99999}]}),
            "spec.template.spec.containers[0].ports[0]",
            "must be",
        ),
    ],
)
def test_a_body_that_breaks_the_schema_is_refused_at_once(server, space, body, field, message):
    """Server-side apply says so with status 500, which for all else means: ask again, for a minute."""
    with pytest.raises(errors.Invalid) as failure:
        apply(server, f"/apis/apps/v1/namespaces/{space}/deployments/d", body)
    assert message in str(failure.value)
    assert server.calls["PATCH"] == 1
    if field:
        assert field in failure.value.causes[0].field
        assert message in failure.value.causes[0].message


def test_what_a_secret_holds_is_in_no_error(server, space):
    """Type errors and bad base64 are echoed with the value."""
    secrets = f"/api/v1/namespaces/{space}/secrets"
    canary, hidden = "c4n4ry-value", "YzRuNHJ5LXZhbHVl"
    head = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}}
    bodies = [
        {"data": {"k": f"{canary}!"}},
        {"stringData": {"k": [canary]}},
        {"stringData": {canary: canary}},
        {"data": {f"bad key {canary}": hidden}},
        {"type": canary, "stringData": {"k": canary}, "immutable": canary},
        {"stringData": {"k": canary}, "metadata": {"name": "s", "labels": {"l": f" {canary} "}}},
    ]
    for body in bodies:
        for method in ("POST", "PATCH"):
            try:
                if method == "POST":
                    server.request("POST", secrets, query={"fieldValidation": "Strict"}, body=head | body)
                else:
                    apply(server, f"{secrets}/s", head | body)
            except (errors.ApiError, Unavailable) as error:
                shown = f"{error!r} {getattr(error, 'causes', ())}"
                assert canary not in shown, shown
                assert hidden not in shown, shown
                assert "\n" not in shown
            else:
                server.request("DELETE", f"{secrets}/s")


def test_real_pages_are_put_together(server, space, monkeypatch):
    """The server's own continue tokens."""
    maps = f"/api/v1/namespaces/{space}/configmaps"
    server.each(
        lambda number: server.request("POST", maps, body=config_map(f"m{number:02}", k="v")), range(23)
    )
    monkeypatch.setattr(transport, "PAGE", 5)
    before = server.calls["LIST"]
    items, version = server.list(maps, query={"fieldSelector": "metadata.name!=kube-root-ca.crt"})
    assert [item["metadata"]["name"] for item in items] == [f"m{number:02}" for number in range(23)]
    assert server.calls["LIST"] - before == 5
    assert int(version) >= max(int(item["metadata"]["resourceVersion"]) for item in items)
    server.request("PATCH", f"{maps}/m01", body={"data": {"k": "w"}}, content_type=MERGE_TYPE)


@pytest.mark.parametrize(
    "fault", [faults.Lost(0), faults.Lost(504), faults.Cut(), faults.Answer(429)], ids=str
)
def test_every_write_that_is_safe_to_repeat_is_repeated(control_plane, space, tmp_path, fault):
    """Apply and delete by uid say the same the second time; what was lost on the way back was done."""
    path = f"/api/v1/namespaces/{space}/configmaps/a"
    with faults.Proxy(control_plane.url) as proxy:
        server = Transport.open(None, kubeconfig=proxy.kubeconfig(tmp_path, control_plane.admin_token))
        rules = [
            proxy.add(fault, verb="PATCH", times=1),
            proxy.add(fault, verb="DELETE", times=1),
            proxy.add(fault, verb="LIST", times=1),
        ]
        live = apply(server, path, config_map("a", k="1")).body
        assert live["data"] == {"k": "1"}
        assert server.list(path.removesuffix("/a"))[0]
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": live["metadata"]["uid"]},
        }
        done_before = isinstance(fault, faults.Lost)
        if done_before:
            with pytest.raises(errors.NotFound):
                server.request("DELETE", path, body=options)
        else:
            server.request("DELETE", path, body=options)
        with pytest.raises(errors.NotFound):
            server.request("GET", path)
        assert [rule.left for rule in rules] == [0, 0, 0]
