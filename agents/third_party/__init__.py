"""Other libraries' agents: each file trains one in the dream and drives the real car with it."""
