"""The test bed: a real Kubernetes control plane, simulated GPU nodes and real controllers, without a container.

`build` compiles the binaries once into the user's cache, `controlplane` runs etcd, API server, controller-manager and
scheduler, `crds` installs what the engines need, `kwok` plays the nodes, `controllers` runs Argo and Kueue.
Everything listens on loopback, runs without root and stops by its own pid.
"""
