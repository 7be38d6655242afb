"""Control of live runs: the protocol and client of the control socket, and the locks of devices."""
