"""The local cluster: this machine, without a server to install.

An object store in one SQLite file (`store`), what is remembered in it (`state`), its face to the command line (`cluster`), and one supervisor process that
makes processes equal to the stored objects (`supervisor`), with one file for each kind of object (`runs`, `services`,
`schedules`; `steps` is what runs and schedules share, `processes` and `environments` what all three share).

Below `home` (`.mlspec`): `state.db`, `supervisor.lock`, `tasks/` (task files), `logs/KIND/NAME/STEP.log`, `store/` (the
storage root, unless the project names another one).
"""
