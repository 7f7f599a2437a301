PRAGMA user_version=1;
BEGIN TRANSACTION;
CREATE TABLE children (
    token TEXT PRIMARY KEY, uid TEXT NOT NULL, step TEXT NOT NULL, pid INTEGER, started REAL NOT NULL,
    attempt INTEGER NOT NULL, detail TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
INSERT INTO "meta" VALUES('counter',2);
INSERT INTO "meta" VALUES('id','05565dbd40454eebbbcda360e55d6a77');
CREATE TABLE notes (name TEXT PRIMARY KEY, document TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO "notes" VALUES('clock','{"Dataset/flights": 1372208400.0}');
INSERT INTO "notes" VALUES('inventory','{"cluster": "local/53b7ffd15dd602cac0a1d8e98f2fd6f0", "entries": {"TrainingJob/late-arrival": {"spec": {"function": "train.py:train"}, "place": "model.yaml:3", "objects": [["local.mlspec.dev/v1", "Run", "", "late-arrival-7c1e9a02", "9637dae82bc542b5ae45433cb2e9910a", 1], ["local.mlspec.dev/v1", "Record", "", "late-arrival-accepted", "1cbbcdd37eb0406480229adfc4d9954c", 0]], "run": "late-arrival-7c1e9a02", "parts": {"code": "c0ffee"}}, "Dataset/flights": {"spec": {"refresh": {"every": "1h"}}, "place": "data.yaml:1", "objects": [], "run": "", "parts": {}}}}');
INSERT INTO "notes" VALUES('triggers','{"triggers": {"MonitoringPolicy/late@2013-06-26": {"id": "MonitoringPolicy/late@2013-06-26", "action": "retrain", "job": "late-arrival", "at": "2013-06-26T00:00:00+00:00", "window": "90d", "reason": "auc 0.71 is below 0.72"}, "Dataset/flights@2013-06-26T01:00:00+00:00": {"id": "Dataset/flights@2013-06-26T01:00:00+00:00", "action": "refresh", "dataset": "flights", "at": "2013-06-26T01:00:00+00:00", "reason": "due at 2013-06-26T01:00:00+00:00"}}}');
CREATE TABLE objects (
    api_version TEXT, kind TEXT, namespace TEXT, name TEXT,
    uid TEXT NOT NULL UNIQUE, body TEXT NOT NULL, annotations TEXT NOT NULL, status TEXT NOT NULL DEFAULT '{}',
    version INTEGER NOT NULL, deleting INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (api_version, kind, namespace, name)
) WITHOUT ROWID;
INSERT INTO "objects" VALUES('local.mlspec.dev/v1','Record','','late-arrival-accepted','1cbbcdd37eb0406480229adfc4d9954c','{"apiVersion": "local.mlspec.dev/v1", "kind": "Record", "metadata": {"name": "late-arrival-accepted"}, "spec": {"data": {"run": "late-arrival-7c1e9a02"}}}','{"mlspec.dev/digest": "d2", "mlspec.dev/resource": "TrainingJob/late-arrival"}','{}',2,0);
INSERT INTO "objects" VALUES('local.mlspec.dev/v1','Run','','late-arrival-7c1e9a02','9637dae82bc542b5ae45433cb2e9910a','{"apiVersion": "local.mlspec.dev/v1", "kind": "Run", "metadata": {"name": "late-arrival-7c1e9a02"}, "spec": {"title": "train late-arrival", "steps": []}}','{"mlspec.dev/digest": "d1", "mlspec.dev/resource": "TrainingJob/late-arrival"}','{}',1,0);
CREATE TABLE runs (
    name TEXT PRIMARY KEY, uid TEXT NOT NULL, title TEXT NOT NULL, phase TEXT NOT NULL, message TEXT NOT NULL DEFAULT '',
    results TEXT NOT NULL DEFAULT '{}', attempts INTEGER NOT NULL DEFAULT 0, created REAL NOT NULL, started REAL, finished REAL
) WITHOUT ROWID;
INSERT INTO "runs" VALUES('late-arrival-7c1e9a02','9637dae82bc542b5ae45433cb2e9910a','train late-arrival','succeeded','','{"train": {"metrics": {"auc": 0.82}}}',0,1.79584622072832107543e+09,1700000000.0,1700000060.0);
CREATE INDEX objects_version ON objects (version);
COMMIT;
