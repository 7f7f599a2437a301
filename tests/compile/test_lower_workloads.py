"""Each workload on each engine, one small golden file each: the contract between kinds and clusters.

Record anew with MLSPEC_RECORD=1.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mlspec.compile import ENGINES, lower, uploads
from mlspec.diagnostics import Mark
from mlspec.engine import Gateway, Settings
from mlspec.engines import argo, config, deployment, job, kueue, local
from mlspec.kinds.project import Target
from mlspec.manifest import Manifest, Origin
from mlspec.workload import Needs, Pool, Record, Run, Schedule, Service, Step, Workload

GOLDEN = Path(__file__).parents[1] / "golden" / "compile"
BUNDLE = "code/0123456789abcdef"
SETTINGS = Settings(
    "demo",
    "ml",
    "registry.example/runtime:1",
    "runner",
    "pvc://claim",
    "http://mlflow:5000",
    gateway=Gateway("inference", "gateways", "ml.example"),
    bundles={
        BUNDLE: {
            "train.py": b"def train(rows):\n    return rows\n",
            "own/__init__.py": b"",
            "own/gew\xc3\xb6hnlich.bin": b"\xff\x00",
        }
    },
)
ORIGIN = Origin("TrainingJob/churn", Mark("specs.yaml", 7, 1))
PREPARE = Step("frames", "frames", {"data": {}}, Needs(cpu=0.5, memory=512 * 2.0**20))
TRAIN = Step(
    "train", "train", {"job": "churn", "gates": []}, Needs(2, 4 * 2.0**30), after=("frames",), timeout=3600
)
GPU = Step("train", "train", {}, Needs(8, 2.0**36, 2, "NVIDIA-H100", "gpus", "urgent"))
CODED = Step("train", "train", {"code": {"path": BUNDLE, "entry": "train.py:train"}})
SERVE = Step("serve", "serve", {"models": {}})
S3 = replace(SETTINGS, storage="s3://ml-demo/team")
LARGE = {
    BUNDLE: {"train.py": b"def train(rows): ...\n", **{f"w{n}.txt": b"%d" % n * 600_000 for n in range(3)}}
}
"""Code that needs three ConfigMaps."""
POOL = {
    "cohort": "company",
    "flavors": [
        {
            "name": "a100",
            "nodeLabels": {"gpu": "a100"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "quota": {"nvidia.com/gpu": {"nominal": "8", "borrow": "4"}, "cpu": {"nominal": "64"}},
        },
        {"name": "cpu", "quota": {"cpu": {"nominal": "100", "lend": "50"}}},
    ],
    "priorities": {"urgent": 1000},
}
TARGETS = {
    "workflow_with_scratch": S3,
    "job_with_code_in_the_bucket": replace(S3, bundles=LARGE),
    "service_with_scratch": S3,
    "workflow_with_code_in_several_config_maps": replace(SETTINGS, bundles=LARGE),
}
"""Settings of the cases that have other ones."""
CASES: dict[str, tuple[str, Workload]] = {
    "workflow_with_scratch": ("kubernetes", Run("churn-1", (PREPARE, CODED), "train churn")),
    "job_with_code_in_the_bucket": (
        "kubernetes",
        Run("churn-1", (PREPARE, CODED), "train churn", engine="job"),
    ),
    "service_with_scratch": ("kubernetes", Service("churn", SERVE)),
    "workflow_with_code_in_several_config_maps": ("kubernetes", Run("churn-1", (CODED,), "train churn")),
    "workflow_of_two_steps": ("kubernetes", Run("churn-1", (PREPARE, TRAIN), "train churn")),
    "job_runs_earlier_steps_as_init_containers": (
        "kubernetes",
        Run("churn-1", (PREPARE, TRAIN), "train churn", engine="job"),
    ),
    "workflow_on_gpus_of_a_pool": ("kubernetes", Run("deep-1", (GPU,), "train deep")),
    "job_on_gpus_of_a_pool": ("kubernetes", Run("deep-1", (GPU,), "train deep", engine="job")),
    "workflow_with_code": ("kubernetes", Run("churn-1", (CODED,), "train churn")),
    "schedule_with_code": ("kubernetes", Schedule("churn-monitor", CODED, cron="0 3 * * *")),
    "service_in_a_pool": ("kubernetes", Service("churn", Step("serve", "serve", {}, Needs(pool="gpus")))),
    "service_of_one_replica": ("kubernetes", Service("churn", SERVE)),
    "service_that_scales": ("kubernetes", Service("churn", SERVE, replicas=(2, 8))),
    "service_on_a_gpu_does_not_surge": (
        "kubernetes",
        Service("churn", Step("serve", "serve", {}, Needs(gpu=1))),
    ),
    "schedule_every_five_minutes": (
        "kubernetes",
        Schedule("churn-monitor", Step("monitor", "monitor", {}), every=300),
    ),
    "record_is_a_config_map": ("kubernetes", Record("model-churn", {"run": "churn-1"})),
    "pool_is_kueue": ("kubernetes", Pool("gpus", POOL)),
    "local_run": ("local", Run("churn-1", (PREPARE, TRAIN), "train churn", {"code": "1"})),
    "local_service": ("local", Service("churn", SERVE, port=8123)),
    "local_schedule": ("local", Schedule("churn-monitor", Step("monitor", "monitor", {}), cron="0 3 * * *")),
    "local_record": ("local", Record("model-churn", {"run": "churn-1"})),
}


class Plain(yaml.SafeDumper):
    """Text of several lines as a block; no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def text(dumper: Plain, value: str) -> yaml.ScalarNode:
    """Code stays readable."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


Plain.add_representer(str, text)


def target(choice: str) -> Target:
    """A target of this sort."""
    return Target.model_validate({choice: {"namespace": "ml"} if choice == "kubernetes" else {}})


def _shortened(body: Mapping[str, Any]) -> dict[str, Any]:
    """Without the bulk of large files."""
    data = body.get("data") or {}
    short = {key: f"{text[:3]}..." if len(text) > 100_000 else text for key, text in data.items()}
    return dict(body) | ({"data": short} if data else {})


@pytest.mark.parametrize("name", CASES)
def test_a_workload_becomes_these_objects(name: str) -> None:
    """A field that appears, moves or vanishes on a cluster must be seen in a review."""
    choice, workload = CASES[name]
    made = lower(workload, target(choice), TARGETS.get(name, SETTINGS), ORIGIN)
    assert not isinstance(made, str)
    bodies = [_shortened(one.body) for one in made]
    found = "---\n".join(yaml.dump(one, Dumper=Plain, sort_keys=False, width=110) for one in bodies)
    golden = GOLDEN / f"{name}.yaml"
    if os.environ.get("MLSPEC_RECORD"):
        golden.write_text(found)
    assert found == golden.read_text()
    for one in made:
        kept = isinstance(workload, Run) or "immutable" in one.body
        assert one.create_only == kept, "runs and what they need are created once"
        assert bool(one.title) == (one.key.kind in ("Workflow", "Job", "Run")), "only runs have a title"
        if choice == "kubernetes":
            assert one.body["metadata"]["labels"]["mlspec.dev/project"] == "demo"
            assert "id001" not in yaml.safe_dump(dict(one.body)), "render would print an anchor"


@pytest.mark.parametrize("choice", ENGINES)
@pytest.mark.parametrize("engine", ["torch", "mpi", "dask", "spark", "ray"])
def test_a_distributed_engine_is_refused_by_name(choice: str, engine: str) -> None:
    """Silence would be a training on one process that was meant for many."""
    made = lower(Run("churn-1", (TRAIN,), "train churn", engine=engine), target(choice), SETTINGS, ORIGIN)
    assert isinstance(made, str)
    assert engine in made


@pytest.mark.parametrize(
    "workload",
    [
        Run("a-1", (Step("train", "train", {}, Needs(gpu=0.5)),), "train a"),
        Run("a-1", (Step("train", "train", {}, Needs(gpu=0.5)),), "train a", engine="job"),
        Service("a", Step("serve", "serve", {}, Needs(gpu=0.5))),
    ],
)
def test_a_share_of_a_gpu_is_refused(workload: Workload) -> None:
    """Without a device plugin that shares, the pod would quietly run without any GPU."""
    made = lower(workload, target("kubernetes"), SETTINGS, ORIGIN)
    assert isinstance(made, str)
    assert "gpuShare" in made


def test_a_pool_is_refused_by_name_on_this_machine() -> None:
    """A quota that nobody holds must not look like one."""
    made = lower(Pool("gpus", POOL), target("local"), SETTINGS, ORIGIN)
    assert isinstance(made, str)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (5, "*/1 * * * *"),
        (60, "*/1 * * * *"),
        (420, "*/7 * * * *"),
        (5400, "0 */1 * * *"),
        (90000, "0 0 * * *"),
    ],
)
def test_a_period_becomes_a_cron_expression_that_is_not_slower(seconds: float, expected: str) -> None:
    """A policy that promises to look every hour must not look every two."""
    assert argo.cron(seconds) == expected


def test_every_kind_of_object_has_one_judge() -> None:
    """An object without a health function would be `unknown` for ever."""
    for name, (choice, workload) in CASES.items():
        made = lower(workload, target(choice), TARGETS.get(name, SETTINGS), ORIGIN)
        assert not isinstance(made, str)
        known = {kind for engine in (argo, deployment, job, kueue, local) for kind in engine.ENGINE.reads}
        assert {one.key.kind for one in made} <= known, name


def made_of(workload: Workload, settings: Settings = SETTINGS) -> list[Manifest]:
    """The objects on Kubernetes."""
    made = lower(workload, target("kubernetes"), settings, ORIGIN)
    assert not isinstance(made, str), made
    return made


def pod_of(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The spec of the pods of an object."""
    found: Mapping[str, Any] = body["spec"]["template"]["spec"]
    return found


def mounted(pod: Mapping[str, Any], maps: Mapping[str, Mapping[str, Any]]) -> dict[str, bytes]:
    """The files that ConfigMaps put into the first container of a pod, as the kubelet would."""
    volumes = {one["name"]: one for one in pod["volumes"]}
    files: dict[str, bytes] = {}
    for mount in pod["containers"][0]["volumeMounts"]:
        volume = volumes[mount["name"]]
        sources = [one["configMap"] for one in volume.get("projected", {}).get("sources", ())]
        for source in [*sources, *([volume["configMap"]] if "configMap" in volume else [])]:
            body = maps[source["name"]]
            for item in source["items"]:
                texts, binaries = body.get("data", {}), body.get("binaryData", {})
                key = item["key"]
                content = texts[key].encode() if key in texts else base64.b64decode(binaries[key])
                files[f"{mount['mountPath']}/{item['path']}"] = content
    return files


def test_a_pod_finds_the_code_where_a_laptop_has_it() -> None:
    """Text, binaries, folders and names beyond ASCII arrive unchanged at ROOT/code/DIGEST."""
    config_map, run = made_of(Run("churn-1", (CODED,), "train churn", engine="job"))
    maps = {config_map.key.name: config_map.body}
    expected = {f"/mlspec/{BUNDLE}/{path}": content for path, content in SETTINGS.bundles[BUNDLE].items()}
    assert mounted(pod_of(run.body), maps) == expected


@pytest.mark.parametrize("engine", ["workflow", "job"])
def test_code_of_several_config_maps_is_one_folder(engine: str) -> None:
    """7 MiB of code work with a claim; each map has the name of its content, so another commit replaces none of them."""
    workload = Run("churn-1", (CODED,), "train churn", engine=engine)
    *parts, _ = made_of(workload, replace(SETTINGS, bundles=LARGE))
    assert len(parts) == 3
    assert len({one.key.name for one in parts}) == 3
    assert all(one.create_only and one.body["immutable"] for one in parts)
    other = {BUNDLE: LARGE[BUNDLE] | {"w0.txt": b"changed" * 80_000}}
    *changed, _ = made_of(workload, replace(SETTINGS, bundles=other))
    assert 0 < len({one.key.name for one in changed} - {one.key.name for one in parts}) < 3


def test_several_config_maps_hold_every_file() -> None:
    """What a pod finds is what the bundle has."""
    *parts, run = made_of(
        Run("churn-1", (CODED,), "train churn", engine="job"), replace(SETTINGS, bundles=LARGE)
    )
    maps = {one.key.name: one.body for one in parts}
    expected = {f"/mlspec/{BUNDLE}/{path}": content for path, content in LARGE[BUNDLE].items()}
    assert mounted(pod_of(run.body), maps) == expected


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({f"{n}.txt": b"x" * 800_000 for n in range(9)}, "more than 8 ConfigMaps"),
        ({"weights.bin": b"\xff" * 700_000}, "the file 0123456789abcdef/weights.bin (911 KiB)"),
    ],
)
def test_code_that_no_config_maps_hold_is_refused_with_every_way_out(
    files: dict[str, bytes], words: str
) -> None:
    """With a claim; S3 takes it."""
    workload = Run("churn-1", (CODED,), "train churn")
    refused = lower(workload, target("kubernetes"), replace(SETTINGS, bundles={BUNDLE: files}), ORIGIN)
    assert isinstance(refused, str)
    assert words in refused
    assert all(way in refused for way in ("s3://", "Dataset", "image"))
    (run,) = made_of(workload, replace(S3, bundles={BUNDLE: files}))
    assert run.key.kind == "Workflow"


def test_pods_pull_exactly_the_code_that_apply_uploads() -> None:
    """A pod that waits for code which nobody puts there fails an hour later."""
    small, large = {"a.py": b"a = 1\n"}, {"b.bin": b"\xff" * 2_000_000}
    s3 = Target.model_validate({"kubernetes": {"namespace": "ml"}, "storage": "s3://ml-demo"})
    claim = Target.model_validate({"kubernetes": {"namespace": "ml"}, "storage": "pvc://claim"})
    digests = {"1" * 64: small, "2" * 64: large}
    assert uploads(s3, {"1" * 64: small}) == {}, "it travels with the objects"
    assert uploads(claim, digests) == {}
    assert uploads(s3, digests) == {"code/" + "1" * 16: small, "code/" + "2" * 16: large}
    both = {name: {"path": f"code/{name * 16}", "entry": "a.py:f"} for name in "12"}
    step = Step("serve", "serve", {"code": both})
    found = made_of(Service("churn", step), replace(S3, bundles=uploads(s3, digests)))
    assert [one.key.kind for one in found][:2] == ["ConfigMap", "Deployment"], "its document, and no code"


def test_code_that_is_not_known_is_left_to_the_storage() -> None:
    """`render` of a project whose code is missing shows the run; its pod then says what is missing."""
    (run,) = made_of(Run("churn-1", (CODED,), "train churn"), replace(SETTINGS, bundles={}))
    assert run.key.kind == "Workflow"


def test_a_service_is_replaced_when_its_document_changes() -> None:
    """A new document is a new pod template, so Kubernetes rolls it out by the health of the new pods."""
    first = made_of(Service("churn", SERVE))
    second = made_of(Service("churn", replace(SERVE, document={"models": {"m": {"run": "churn-2"}}})))
    assert first[0].key != second[0].key
    assert pod_of(first[1].body) != pod_of(second[1].body)
    files = mounted(pod_of(second[1].body), {second[0].key.name: second[0].body})
    assert json.loads(files["/etc/mlspec/serve.json"])["models"] == {"m": {"run": "churn-2"}}


@pytest.mark.parametrize("engine", ["workflow", "job"])
def test_a_long_document_comes_as_a_file(engine: str) -> None:
    """Linux refuses an argument of more than 128 KiB, long after the review."""
    long = replace(CODED, document={"features": ["x" * 50] * 3000})
    config_map, run = made_of(Run("churn-1", (long,), "train churn", engine=engine))
    assert config_map.key.name == "churn-1-task"
    text = json.dumps(run.body)
    assert '"/etc/mlspec/train.json"' in text
    assert len(text) < 20_000


@pytest.mark.parametrize("engine", ["workflow", "job"])
def test_code_that_is_too_large_is_refused_with_a_way_out(engine: str) -> None:
    """The API server's answer would be a number of bytes."""
    settings = replace(SETTINGS, bundles={BUNDLE: {"weights.bin": b"\xff" * 700_000, "a.py": b""}})
    run = Run("churn-1", (CODED,), "train churn", engine=engine)
    refused = lower(run, target("kubernetes"), settings, ORIGIN)
    assert isinstance(refused, str)
    assert "weights.bin" in refused
    assert "Dataset" in refused


@pytest.mark.parametrize("engine", ["workflow", "job"])
def test_nothing_expands_a_document(engine: str) -> None:
    """Kubernetes expands `$(HOME)` in arguments and Argo `{{name}}`: a pattern of a user is neither."""
    document = {"spec": {"pattern": "[a-z]{{2}}$(HOME)$$(x)"}}
    (run,) = made_of(Run("churn-1", (Step("train", "train", document),), "train churn", engine=engine))
    (argument,) = [one for one in _strings(run.body) if isinstance(one, str) and one.startswith('{"name"')]
    assert "{{" not in argument
    assert "$(" not in argument
    assert json.loads(argument)["spec"] == document["spec"]


def _strings(value: Any) -> list[Any]:
    match value:
        case Mapping():
            return [one for each in value.values() for one in _strings(each)]
        case list() | tuple():
            return [one for each in value for one in _strings(each)]
        case _:
            return [value]


@given(st.text(min_size=1, max_size=60))
def test_a_path_survives_as_a_key(path: str) -> None:
    """Two files of one key would be one file."""
    key = config.key(path)
    assert config.path_of(key) == path
    assert key.isascii()
    assert all(one.isalnum() or one in "-._" for one in key)


def test_the_containers_of_a_pod_share_their_messages() -> None:
    """Kubernetes cuts a message beyond the share of its container: five steps have 2457 bytes each."""
    steps = tuple(Step(f"s{number}", "train", {}) for number in range(5))
    (run,) = made_of(Run("churn-1", steps, "train churn", engine="job"))
    pod = pod_of(run.body)
    for container in [*pod["initContainers"], *pod["containers"]]:
        assert {"name": "MLSPEC_MESSAGE_LIMIT", "value": "2457"} in container["env"]


def test_services_without_a_host_are_reached_by_path() -> None:
    """One Gateway without DNS of its own still serves several services."""
    settings = replace(SETTINGS, gateway=Gateway("inference"))
    (route,) = [one.body for one in made_of(Service("churn", SERVE), settings) if one.key.kind == "HTTPRoute"]
    assert "hostnames" not in route["spec"]
    (rule,) = route["spec"]["rules"]
    assert rule["matches"][0]["path"]["value"] == "/churn"


def test_a_pull_policy_reaches_every_container() -> None:
    """A node without a registry has `Never` or nothing."""
    settings = replace(SETTINGS, image_pull_policy="Never")
    (run,) = made_of(Run("churn-1", (PREPARE, TRAIN), "train churn"), settings)
    templates = [one["container"] for one in run.body["spec"]["templates"] if "container" in one]
    assert [one["imagePullPolicy"] for one in templates] == ["Never", "Never"]


def test_a_pool_covers_what_every_pod_asks_for() -> None:
    """Kueue admits nothing that asks for an uncovered resource: a pool of GPUs alone would admit no pod at all."""
    pool = Pool(
        "gpus",
        {"cohort": "all", "flavors": [{"name": "h200", "quota": {"nvidia.com/gpu": {"nominal": "8"}}}]},
    )
    (queue,) = [one.body for one in made_of(pool) if one.key.kind == "ClusterQueue"]
    (group,) = queue["spec"]["resourceGroups"]
    assert group["coveredResources"] == ["cpu", "memory", "nvidia.com/gpu"]
    quotas = {one["name"]: one for one in group["flavors"][0]["resources"]}
    assert quotas["nvidia.com/gpu"] == {"name": "nvidia.com/gpu", "nominalQuota": "8"}
    assert quotas["cpu"]["lendingLimit"] == "0", "what is not limited here may not undo the limits of others"


def test_pools_share_what_they_lend_each_other() -> None:
    """Two pools that each made the flavor `h100` would overwrite and, worse, delete each other's."""
    second = {"cohort": "all", "flavors": POOL["flavors"], "priorities": {"urgent": 1000, "normal": 10}}
    made = kueue.shared([Pool("a", POOL | {"cohort": "all"}), Pool("b", second)], SETTINGS, ORIGIN)
    assert [(one.key.kind, one.key.name) for one in made] == [
        ("ResourceFlavor", "a100"),
        ("ResourceFlavor", "cpu"),
        ("Cohort", "all"),
        ("WorkloadPriorityClass", "urgent"),
        ("WorkloadPriorityClass", "normal"),
    ]


def test_every_step_of_a_pool_tolerates_the_taints_of_its_nodes() -> None:
    """A step that prepares tables on a GPU node waits for ever when only GPU steps tolerate its taint. And a toleration
    whose operator is left out means Equal to Kubernetes, but Exists to us."""
    flavor = {"name": "gpus", "tolerations": [{"key": "team"}], "quota": {"nvidia.com/gpu": {"nominal": "8"}}}
    (made,) = kueue.shared([Pool("a", {"flavors": [flavor]})], SETTINGS, ORIGIN)
    assert made.body["spec"]["tolerations"] == [
        {"key": "team", "operator": "Exists"},
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
    ]
