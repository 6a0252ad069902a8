"""What every Enginehouse gRPC server shares: settings, one interceptor chain, health, reflection, graceful stop."""
