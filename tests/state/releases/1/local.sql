PRAGMA user_version=2;
BEGIN TRANSACTION;
CREATE TABLE children (
    token TEXT PRIMARY KEY, uid TEXT NOT NULL, step TEXT NOT NULL, pid INTEGER, started REAL NOT NULL,
    attempt INTEGER NOT NULL, detail TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
INSERT INTO "meta" VALUES('counter',0);
INSERT INTO "meta" VALUES('holder','laptop/4711');
INSERT INTO "meta" VALUES('id','021e8fb804d24b03845da53e1b269c92');
INSERT INTO "meta" VALUES('token',1);
CREATE TABLE notes (name TEXT PRIMARY KEY, document TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE objects (
    api_version TEXT, kind TEXT, namespace TEXT, name TEXT,
    uid TEXT NOT NULL UNIQUE, body TEXT NOT NULL, annotations TEXT NOT NULL, status TEXT NOT NULL DEFAULT '{}',
    version INTEGER NOT NULL, deleting INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (api_version, kind, namespace, name)
) WITHOUT ROWID;
CREATE TABLE rows (
    "table" TEXT, key TEXT, value TEXT NOT NULL, version INTEGER NOT NULL, PRIMARY KEY ("table", key)
) WITHOUT ROWID;
INSERT INTO "rows" VALUES('applied','laptop','{"revision": "0123456789abcdef", "commit": "4f2c1d0 \"Retrain weekly\""}',1);
INSERT INTO "rows" VALUES('inventory','Dataset/flights','{"spec": {"refresh": {"every": "1h"}}, "place": "data.yaml:1", "objects": [], "run": "", "parts": {}}',1);
INSERT INTO "rows" VALUES('inventory','TrainingJob/late-arrival','{"spec": {"function": "train.py:train"}, "place": "model.yaml:3", "objects": [["local.mlspec.dev/v1", "Run", "", "late-arrival-7c1e9a02", "9637dae82bc542b5ae45433cb2e9910a", 1], ["local.mlspec.dev/v1", "Record", "", "late-arrival-accepted", "1cbbcdd37eb0406480229adfc4d9954c", 0]], "run": "late-arrival-7c1e9a02", "parts": {"code": "c0ffee"}}',1);
INSERT INTO "rows" VALUES('marks','timer Dataset/flights','{"at": 1372208400.0}',1);
INSERT INTO "rows" VALUES('models','TrainingJob/late-arrival','{"accepted": ["late-arrival-7c1e9a02"], "serving": "late-arrival-7c1e9a02"}',1);
INSERT INTO "rows" VALUES('requests','MonitoringPolicy/late@2013-06-26','{"id": "MonitoringPolicy/late@2013-06-26", "action": "retrain", "job": "late-arrival", "at": "2013-06-26T00:00:00+00:00", "window": "90d", "reason": "auc 0.71 is below 0.72 (Caf\u00e9 Z\u00fcrich)"}',1);
INSERT INTO "rows" VALUES('runs','late-arrival-7c1e9a02','{"phase": "succeeded", "results": {"train": {"metrics": {"auc": 0.82}}}, "message": ""}',1);
INSERT INTO "rows" VALUES('target','cluster','{"identity": "local/53b7ffd15dd602ca"}',1);
CREATE TABLE runs (
    name TEXT PRIMARY KEY, uid TEXT NOT NULL, title TEXT NOT NULL, phase TEXT NOT NULL, message TEXT NOT NULL DEFAULT '',
    results TEXT NOT NULL DEFAULT '{}', attempts INTEGER NOT NULL DEFAULT 0, created REAL NOT NULL, started REAL, finished REAL
) WITHOUT ROWID;
CREATE INDEX objects_version ON objects (version);
COMMIT;
