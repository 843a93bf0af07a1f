"""The parts of the agent: `main` says what it is; `agent.archive` packs them into the one file that a device gets."""
