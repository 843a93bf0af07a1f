"""The parts of the agent: `main` describes it; `agent.archive` packs them into the one file that a device gets."""
