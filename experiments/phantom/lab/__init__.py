"""The phantom as the lab, in real time: what its programs send and take over real sockets (`vla_jax.live.wire`)."""
