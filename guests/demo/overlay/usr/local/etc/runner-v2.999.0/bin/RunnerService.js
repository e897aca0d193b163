// In the place of actions/runner's own, which myshoes' setup script replaces: starts bin/Runner.Listener.
