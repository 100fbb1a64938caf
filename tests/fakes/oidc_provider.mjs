// npm `oidc-provider` with a key that can be changed, one client, and the people of a JSON file as accounts.
// Usage: node oidc_provider.mjs MODULE PEOPLE.json CLIENT.json id_token|userinfo
import { createServer } from 'node:http';
import { generateKeyPairSync } from 'node:crypto';
import { readFileSync } from 'node:fs';

const [module, peopleFile, clientFile, where] = process.argv.slice(2);
const { default: Provider } = await import(module);
const people = () => JSON.parse(readFileSync(peopleFile, 'utf8'));

function key(kid) {
  const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  return { ...privateKey.export({ format: 'jwk' }), kid, use: 'sig', alg: 'RS256' };
}

function make(issuer, jwk) {
  const client = JSON.parse(readFileSync(clientFile, 'utf8'));
  return new Provider(issuer, {
    clients: [client],
    clientAuthMethods: [client.token_endpoint_auth_method],
    claims: { openid: ['sub'], email: ['email', 'email_verified'], groups: ['groups'] },
    scopes: ['openid', 'email', 'groups'],
    conformIdTokenClaims: where === 'userinfo',
    cookies: { keys: ['only-for-tests'] },
    jwks: { keys: [jwk] },
    pkce: { required: () => true },
    findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id, ...people()[id] }) }),
  });
}

const server = createServer();
server.listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  let serial = 1;
  let current = key('key-1');
  let serve = make(issuer, current).callback();
  server.on('request', (request, response) => {
    if (request.url === '/change-key') {
      serial += 1;
      current = key(`key-${serial}`);
      serve = make(issuer, current).callback();
      response.end();
    } else if (request.url === '/private-key') {
      response.end(JSON.stringify(current));
    } else {
      serve(request, response);
    }
  });
  console.log(`listening on ${issuer}`);
});
