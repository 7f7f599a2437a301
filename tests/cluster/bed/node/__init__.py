"""Layer 3 of the test bed: a real node on this machine, where pods really run.

`packages` installs what Debian has (containerd, runc, CNI plugins, iptables, buildah), `machine` makes a machine inside this
one (network, mounts and processes of its own, which end together), `images` builds images without a registry, `node` runs
containerd, kubelet, kube-proxy and CoreDNS in it against a `ControlPlane`:

    with node.start(tmp_path) as real:                      # a control plane and its node, about half a minute
        namespace = real.plane.namespace("flights", security="restricted")
        claim = real.claim(namespace, "storage")            # a volume that uid 10001 may write to
        real.plane.apply([... image: real.runtime.name ...])

It needs root, and Debian or the packages; elsewhere `build.Unavailable` says why, and tests skip with that reason.
"""
