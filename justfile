# For convenience only: everything here is a command that the README or CONTRIBUTING.md names.

# Format, lint, docs and all tests, as CI runs them.
check:
    .ci/run

# All tests.
test:
    tests/run

# Licences and sources of the dependencies.
deny:
    cargo deny check bans licenses sources
